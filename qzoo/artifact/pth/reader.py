"""`read_checkpoint`: from the path of a `torch.save` file to plain data."""

from __future__ import annotations

import os
from typing import Any

from qzoo.artifact.pth.file import File, Span
from qzoo.artifact.pth.inert import (
    Namespace,
    OrderedItems,
    RefusedError,
    TensorRef,
    shown,
)
from qzoo.artifact.pth.legacy import read_legacy
from qzoo.artifact.pth.tensors import Converter
from qzoo.artifact.pth.values import Checkpoint
from qzoo.artifact.pth.zipped import MAGIC, read_zip
from qzoo.errors import ArtifactError

# Where training scripts put the state dict, the most wanted first.
_PARTS = ("model", "state_dict", "model_ema")


def read_checkpoint(path: str | os.PathLike[str], part: str | None = None) -> Checkpoint:
    """Reads a state dict that `torch.save` wrote, without running anything in the file.

    Both serializations are read: the zip format and the one from before PyTorch 1.6. No quantized
    tensor is made and no quantized operator called, so that it works in a PyTorch without them.
    Memory stays below the file's size plus 128 MiB; the other bounds are in `inert`.

    Args:
        path: The file.
        part: Key of the state dict in a training checkpoint such as `{"model": ..., "epoch": 3}`.
            By default `model`, `state_dict` or `model_ema`, the first that exists, unless the
            file is a state dict itself.

    Raises:
        ArtifactError: The file does not exist, is of another kind, is damaged, or refers to
            anything that is not on the allow-list. The message names the file and the reason.
    """
    shown_path = os.fsdecode(path)
    try:
        with File(shown_path) as file:
            value, spans = _read(file)
            return _checkpoint(value, Converter(file, spans), part)
    except RefusedError as error:
        raise ArtifactError(f"{shown_path} {error}.") from error
    except Exception as error:
        # The file is untrusted: whatever reading it provokes is an error of the file.
        raise ArtifactError(
            f"{shown_path} is damaged and cannot be read ({type(error).__name__}: "
            f"{shown(str(error))}); fetch it again."
        ) from error


def _read(file: File) -> tuple[object, dict[str, Span]]:
    head = file.read_bytes(0, min(512, file.size))
    if head.startswith(MAGIC):
        return read_zip(file)
    if head[:1] == b"\x80":
        return read_legacy(file)
    raise RefusedError(_other_kind(head))


def _other_kind(head: bytes) -> str:
    """What a file is that is none of the two formats, judged by its first 512 bytes."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "is empty; fetch it again"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")):
        return (
            "is a web page, not a checkpoint: the server, or a login page in between, answered "
            "with HTML; open its address in a browser and fetch the file again"
        )
    if text.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself; run `git lfs pull`"
    if head[8:9] == b"{" and head[5:8] == b"\0\0\0":
        return "is a safetensors file, not one of torch.save; open it as an artifact"
    if head[257:262] == b"ustar":
        return (
            "is a tar archive as PyTorch before 0.1.10 wrote them; load it with PyTorch and save "
            "it again"
        )
    return "is no file of torch.save: it begins with neither a zip archive nor a pickle"


def _checkpoint(value: object, converter: Converter, part: str | None) -> Checkpoint:
    outer = value.fields if isinstance(value, Namespace) else value
    if not isinstance(outer, dict):
        what = "a tensor" if isinstance(value, TensorRef) else f"a {type(value).__name__}"
        raise RefusedError(f"holds {what} instead of a state dict; save model.state_dict()")
    if part is None and not any(isinstance(item, TensorRef) for item in outer.values()):
        part = next((name for name in _PARTS if isinstance(outer.get(name), dict)), None)
    others: tuple[str, ...] = ()
    chosen: Any = outer
    if part is not None:
        others = tuple(str(key) for key in outer if key != part)
        chosen = outer.get(part)
        chosen = chosen.fields if isinstance(chosen, Namespace) else chosen
        if not isinstance(chosen, dict):
            known = ", ".join(shown(name) for name in others[:8])
            raise RefusedError(f"holds no dict under '{shown(part)}'; it has {known or 'no keys'}")
    if not all(isinstance(key, str) for key in chosen):
        raise RefusedError("is no state dict: some of its keys are numbers")
    entries = converter.convert(chosen)
    assert isinstance(entries, dict)
    return Checkpoint(entries, _metadata(chosen, converter), part, others)


def _metadata(state: dict[Any, Any], converter: Converter) -> dict[str, dict[str, Any]]:
    stored = state.metadata if isinstance(state, OrderedItems) else None
    metadata: Any = {} if stored is None else converter.convert(stored)
    if not isinstance(metadata, dict) or not all(
        isinstance(key, str) and isinstance(item, dict) for key, item in metadata.items()
    ):
        raise RefusedError("is damaged: its _metadata is not a dict of dicts")
    return metadata
