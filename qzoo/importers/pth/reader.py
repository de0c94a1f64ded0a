"""From the path of a `torch.save` file to plain data: `read_arrays` and `read_checkpoint`."""

from __future__ import annotations

import os
from typing import Any

from ..._core.files import File, Span, not_opened, opened
from ...errors import ArtifactError
from .elements import ArrayMaker, TensorMaker
from .inert import Foreign, Namespace, OddKey, OrderedItems, RefusedError, TensorRef, shown
from .legacy import read_legacy
from .tensors import Converter
from .values import Checkpoint
from .zipped import MAGIC, read_zip

# Where training scripts put the state dict, the most wanted first: what was trained before averages
# of it. One may lie in another ("ema" holding "module"), but not endlessly.
PARTS = (
    *("model", "state_dict", "model_state_dict", "model_state", "net", "network", "weights"),
    *("module", "model_ema", "ema", "state_dict_ema", "ema_state_dict", "model_ema_state_dict"),
)
_MAX_PARTS = 4


def read_arrays(path: str | os.PathLike[str] | File, part: str | None = None) -> Checkpoint:
    """Reads a state dict that `torch.save` wrote, without running anything in the file.

    Both serializations are read: the zip format and the one from before PyTorch 1.6. PyTorch is not
    needed. Memory stays below the file's size plus 128 MiB; the other bounds are in `inert`.

    Args:
        path: The file, or the file itself where it is open already.
        part: Key of the state dict in a training checkpoint such as `{"model": ..., "epoch": 3}`,
            or several ("ema.module"). By default the first of `PARTS` that exists, or the only
            one that holds tensors, unless the file is a state dict itself.

    Returns:
        The state dict with numpy arrays. Those of bfloat16 and float8, which numpy lacks, have a
        dtype with one field of that name, which holds the bits; `in_arrays` makes float32 of them.

    Raises:
        ArtifactError: The file does not exist, is of another kind, is damaged, or refers to
            anything that is not on the allow-list. The message names the file and the reason.
    """
    return _read_checkpoint(path, part, ArrayMaker())


def read_checkpoint(path: str | os.PathLike[str] | File, part: str | None = None) -> Checkpoint:
    """Reads a state dict as `read_arrays` does, into PyTorch's tensors.

    No quantized tensor is made and no quantized operator called, so that it works in a PyTorch
    without them.

    Args:
        path: The file, or the file itself where it is open already.
        part: Key of the state dict in a training checkpoint, see `read_arrays`.

    Raises:
        ArtifactError: As `read_arrays` raises it.
        MissingDependencyError: PyTorch is not installed.
    """
    return _read_checkpoint(path, part, TensorMaker())


def _read_checkpoint(
    path: str | os.PathLike[str] | File, part: str | None, make: ArrayMaker | TensorMaker
) -> Checkpoint:
    shown_path = os.fsdecode(path.path if isinstance(path, File) else path)
    try:
        with opened(path) as file:
            value, spans = _read(file)
            return _checkpoint(value, Converter(file, spans, make), part)
    except RefusedError as error:
        raise ArtifactError(f"{shown_path} {error}.") from error
    except OSError as error:
        raise ArtifactError(f"{shown_path} {not_opened(error)}.") from error
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
    """Returns what a file of neither format is, judged by its first 512 bytes."""
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
    outer = _as_dict(value)
    if outer is None:
        raise RefusedError(f"holds {_what(value)} instead of a state dict; save model.state_dict()")
    chosen = outer
    keys: list[str] = []
    if part is not None:
        chosen, keys = _named_part(outer, part)
    while len(keys) < _MAX_PARTS and (key := _likely_part(chosen)) is not None:
        inner = _as_dict(chosen[key])
        assert inner is not None
        chosen, keys = inner, [*keys, key]
    if any(isinstance(key, OddKey) for key in chosen):
        raise RefusedError(
            "is no state dict: it has a dict key that is neither text nor a small integer"
        )
    if not all(isinstance(key, str) for key in chosen):
        raise RefusedError("is no state dict: some of its keys are numbers")
    entries = converter.convert(dict(chosen))
    assert isinstance(entries, dict)
    others = tuple(k for k in outer if isinstance(k, str) and keys and k != keys[0])
    metadata = _metadata(chosen, converter)
    return Checkpoint(entries, metadata, ".".join(keys) if keys else None, others)


def _named_part(outer: dict[Any, Any], part: str) -> tuple[dict[Any, Any], list[str]]:
    """The dict under the key `part`, or under several that are joined by dots, and the keys."""
    for keys in ([part], part.split(".")):
        found: dict[Any, Any] | None = outer
        for key in keys:
            found = None if found is None else _as_dict(found.get(key))
        if found is not None:
            return found, keys
    known = ", ".join(shown(str(name)) for name in list(outer)[:8] if isinstance(name, str))
    raise RefusedError(f"holds no dict under '{shown(part)}'; it has {known or 'no keys'}")


def _likely_part(outer: dict[Any, Any]) -> str | None:
    """The key under which the state dict lies, None where `outer` is one or nothing tells."""
    if _holds_weights(outer):
        return None
    inner = {key: _as_dict(item) for key, item in outer.items() if isinstance(key, str)}
    named = next((name for name in PARTS if inner.get(name)), None)
    if named is not None:
        return named
    holding = [key for key, items in inner.items() if _holds_weights(items)]
    return holding[0] if len(holding) == 1 else None


def _holds_weights(items: dict[Any, Any] | None) -> bool:
    """Whether it holds tensors of modules ("conv1.weight"), and not only such as a random state."""
    return any(
        isinstance(key, str) and "." in key and isinstance(item, TensorRef)
        for key, item in (items or {}).items()
    )


def _as_dict(value: object) -> dict[Any, Any] | None:
    if isinstance(value, Namespace):
        return value.fields or {}
    if isinstance(value, Foreign):  # a dict of another kind keeps its items
        return value.items or None
    return value if isinstance(value, dict) else None


def _what(value: object) -> str:
    if isinstance(value, Foreign):
        return f"an object of {shown(value.name)}, which qzoo never runs,"
    return "a tensor" if isinstance(value, TensorRef) else f"a {type(value).__name__}"


def _metadata(state: dict[Any, Any], converter: Converter) -> dict[str, dict[str, Any]]:
    stored = state.metadata if isinstance(state, OrderedItems) else None
    metadata: Any = {} if stored is None else converter.convert(stored)
    if not isinstance(metadata, dict) or not all(
        isinstance(key, str) and isinstance(item, dict) for key, item in metadata.items()
    ):
        raise RefusedError("is damaged: its _metadata is not a dict of dicts")
    return metadata
