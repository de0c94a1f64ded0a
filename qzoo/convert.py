"""From files of every kind that holds an int8 model to artifacts, and back to state dicts."""

from __future__ import annotations

import contextlib
import functools
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .artifact.format import Artifact, ModelInfo
from .artifact.names import unwrapped
from .artifact.native import to_native
from .artifact.pth import QuantizedArray, read_checkpoint
from .artifact.published import from_checkpoint, read_published
from .errors import ArgumentError, ArtifactError
from .files import File, RefusedError, not_opened, opened
from .registry import get_entry, get_weight, list_models
from .sharing import find_artifact
from .weights import QuantizedWeightsEnum, hash_in_name


def is_artifact(path: Path) -> bool:
    """Says whether a file is an artifact, or a folder one of a shared model, by its first bytes."""
    if path.is_dir() or path.suffix == ".safetensors":
        return True
    try:
        with File(path) as file:
            return _begins_like_one(file)
    except OSError:
        return False


def _begins_like_one(file: File) -> bool:
    if file.path.suffix == ".safetensors":
        return True
    head = file.read_bytes(0, min(9, file.size))
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32


def read_model(path: str | os.PathLike[str], **options: Any) -> Artifact:
    """Reads an artifact, a folder of `save_pretrained`, or a checkpoint (`convert_checkpoint`).

    Raises:
        ArtifactError: The file is missing, damaged, or holds no int8 model.
        ArgumentError: Options given for an artifact, which says all of that itself.
    """
    path = Path(path)
    given = sorted(key for key, value in options.items() if value is not None)
    with contextlib.ExitStack() as stack:
        if path.is_dir():
            read = functools.partial(find_artifact, path)
        else:
            file = stack.enter_context(_opened(path))
            if not _begins_like_one(file):
                return convert_checkpoint(file, **options)
            read = functools.partial(Artifact.read, file)
        if given:
            raise ArgumentError(
                f"{path} is an artifact, which says itself what it is: drop {', '.join(given)}."
            )
        return read()


@contextlib.contextmanager
def _opened(path: Path | File) -> Iterator[File]:
    """Opens a file once for all that is done with it: what it is, its hash, its contents."""
    try:
        with opened(path) as file:
            yield file
    except OSError as error:
        raise ArtifactError(f"{path} {not_opened(error)}.") from None
    except RefusedError as error:
        raise ArtifactError(f"{path} {error}.") from None


def convert_checkpoint(
    path: str | os.PathLike[str] | File,
    *,
    model: str | None = None,
    num_classes: int | None = None,
    backend: str | None = None,
    classes: list[str] | None = None,
    part: str | None = None,
    transform_input: bool | None = None,
    like: str | None = None,
) -> Artifact:
    """Makes an artifact of a `torch.save` file: a published one, or a user's own state dict.

    A file that torchvision has published is known by its hash, and needs no options.

    Args:
        path: The file, or the file itself where it is open already; its state dict is that of a
            converted model or of one prepared for QAT.
        model: The registry's name of the architecture; None guesses it from the weights.
        num_classes: Of the classifier; None takes what the file holds.
        backend: That the numbers were chosen for; None guesses it from the granularity of scales.
        classes: Names in the order of the logits.
        part: Key of the state dict in a training checkpoint.
        transform_input: Whether a GoogLeNet or Inception changes its input's normalization, which
            no state dict tells.
        like: Full name of int8 weights whose transforms the model shares.

    Raises:
        ArtifactError: The file is missing, damaged, or holds no int8 model.
        ArgumentError: The architecture cannot be guessed, or options do not fit it.
        UnknownNameError: An unknown model, backend or weights.
    """
    options = (model, num_classes, backend, classes, part, transform_input, like)
    with _opened(path if isinstance(path, File) else Path(path)) as file:
        if all(option is None for option in options):
            member = published_member(file)
            if member is not None:
                return read_published(file, member)
        checkpoint = read_checkpoint(file, part)
    model = model or guess_architecture(checkpoint.entries)
    kwargs: dict[str, Any] = {}
    if num_classes is not None:
        kwargs["num_classes"] = num_classes
    if "transform_input" in get_entry(model).pretrained_kwargs:
        if transform_input is None:
            raise ArgumentError(
                f"A state dict does not tell whether its {model} transforms its input: say "
                "--transform-input if it descends from torchvision's pretrained weights, else "
                "--no-transform-input."
            )
        kwargs["transform_input"] = transform_input
    elif transform_input is not None:
        raise ArgumentError(f"{model} has no input to transform: drop transform_input.")
    transforms = None
    if like is not None:
        preset = get_weight(like).transforms()
        if not hasattr(preset, "to_dict"):
            raise ArgumentError(f"{like} are no int8 weights, whose transforms could be taken.")
        transforms = preset.to_dict()
    info = ModelInfo(
        model, kwargs, backend, classes, transforms, recipe={"converted_from": file.path.name}
    )
    return from_checkpoint(checkpoint, info, consume=True)


def state_dict_bytes(artifact: Artifact) -> bytes:
    """Returns what `torch.save` writes of the state dict that torchvision's int8 model loads.

    Raises:
        ArtifactError: The artifact does not fit its architecture, or keeps layers in float, which
            torchvision's int8 models cannot hold.
    """
    if kept := artifact.float_layers:
        raise ArtifactError(
            f"This model keeps {len(kept)} layers in float ({kept[0]!r}, ...), which torchvision's "
            "int8 models cannot hold: export it instead (qzoo export)."
        )
    buffer = io.BytesIO()
    torch.save(to_native(artifact).state_dict(), buffer)
    return buffer.getvalue()


def published_member(file: File) -> QuantizedWeightsEnum | None:
    """Returns the weights whose published file this is, known by its hash, or None."""
    sha256 = file.sha256()
    for member in all_weights():
        known = member.meta.get("sha256") or member.meta.get("sha256_prefix")
        if known and sha256.startswith(known) and not member.embedded:
            return member
    return None


def all_weights() -> Iterator[QuantizedWeightsEnum]:
    """Goes through the members of all int8 weight enums."""
    for name in list_models(quantized=True):
        yield from get_entry(name).weights  # type: ignore[misc]


def guess_architecture(entries: Mapping[str, Any]) -> str:
    """Returns the model of the registry that has these convolutions, by name and shape.

    Args:
        entries: A state dict as the safe reader gives it.

    Raises:
        ArgumentError: None has them, or several do.
    """
    found = {}
    for key, value in unwrapped(entries).items():
        weight = value.values if isinstance(value, QuantizedArray) else value
        if key.endswith(".weight") and isinstance(weight, Tensor) and weight.dim() == 4:
            found[key.removesuffix(".weight")] = tuple(weight.shape)
    matches = []
    for name in list_models():
        aux = tuple(f"{part}." for part in get_entry(name).aux)
        own = {key: shape for key, shape in found.items() if not key.startswith(aux)}
        if own and own == _convolutions(name):
            matches.append(name)
    if len(matches) == 1:
        return matches[0]
    what = f"fit several models ({', '.join(matches)})" if matches else "fit no model of the zoo"
    raise ArgumentError(
        f"The {len(found)} convolutions of this checkpoint {what}: name the model with --model."
    )


@functools.cache
def _convolutions(name: str) -> dict[str, tuple[int, ...]]:
    entry = get_entry(name)
    skeleton = entry.skeleton({"aux_logits": False} if entry.aux else {})
    return {
        key: tuple(module.weight.shape)
        for key, module in skeleton.named_modules()
        if isinstance(module, nn.Conv2d)
    }


def check_model(path: Path) -> str:
    """Reads a file as far as loading it would, and says in a few words what it is.

    Raises:
        ArtifactError: It is damaged, is not what its name says, or holds no model of the zoo.
    """
    if path.is_dir():
        return _described(find_artifact(path))
    with _opened(path) as file:
        if _begins_like_one(file):
            return _described(Artifact.read(file))
        member = published_member(file)
        if member is not None:
            return f"{member!r}, {describe(read_published(file, member))}"
        checkpoint = read_checkpoint(file)
        expected = hash_in_name(path)
        if expected and not file.sha256().startswith(expected):
            raise ArtifactError(
                f"{path} does not have the hash that its name ends in; fetch it again."
            )
    try:
        model = guess_architecture(checkpoint.entries)
    except ArgumentError:
        return f"a readable checkpoint of {len(checkpoint.entries)} entries, of no model known here"
    return describe(from_checkpoint(checkpoint, ModelInfo(model), consume=True))


def _described(artifact: Artifact) -> str:
    to_native(artifact)  # says whether it fits its architecture
    return describe(artifact)


def describe(artifact: Artifact) -> str:
    """Returns a few words on what an artifact is."""
    info = artifact.info
    text = f"{info.architecture}, int8 for {info.backend}, {len(artifact.layers)} layers"
    kept = len(artifact.float_layers)
    return f"{text}, {kept} of them kept in float" if kept else text
