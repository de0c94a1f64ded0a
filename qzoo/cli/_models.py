"""How commands find models and what goes with them: float or int8, by name, file or folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._core.optional import require_torch
from ..artifact.folders import float_file, int8_file
from ..artifact.format import Artifact
from ..backends import get_backend
from ..errors import ArgumentError, ArtifactError
from ..importers.float_files import is_float_checkpoint
from ..published import published_weights
from ..sharing.convert import is_artifact, read_model
from ..sharing.pretrained import find_artifact
from ._names import HUB, is_name
from ._output import print_warning

if TYPE_CHECKING:
    from torch import nn


def find_int8(
    model: str, weights: str | None = None, told: Mapping[str, Any] | None = None
) -> Artifact:
    """Reads the int8 model that a MODEL argument names; needs no PyTorch.

    Args:
        model: A model of the zoo, an artifact, a folder of `save_pretrained` or `qzoo finetune`, an
            int8 .pth file, or a repository on the Hugging Face Hub ("hf://org/name@revision").
        weights: Which of the zoo's weights; None takes DEFAULT.
        told: What the user says of a state dict: keywords of `convert_checkpoint`.

    Raises:
        QzooError: An unknown model, weights or file, or weights given for a file.
    """
    told = told or {}
    if is_name(model):
        _check_told(model, told)
        return published_weights(model, weights or "DEFAULT").artifact()
    _check_no_weights(model, weights)
    if model.startswith(HUB):
        _check_told(model, told)
        repo, _, revision = model.removeprefix(HUB).partition("@")
        return find_artifact(repo, revision or None)
    path = existing(int8_file(model))
    if is_float_checkpoint(path):
        raise ArtifactError(f"{path} holds float weights: quantize it first (qzoo quantize).")
    if is_artifact(path):
        _check_told(model, told)
        return Artifact.read(path)
    return read_model(path, **told)


def load_model(
    model: str,
    weights: str | None,
    backend: str | None = None,
    told: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Loads the int8 model that a MODEL argument names as PyTorch's module.

    Args:
        model: As for `find_int8`, as `weights` and `told`.
        weights: See there.
        backend: Whose engine runs it; None takes the model's own.
        told: See there.

    Raises:
        QzooError: As `find_int8`, or an unknown backend.
    """
    require_torch("A PyTorch module of an int8 model")
    from ..native.model import to_native

    if backend is not None:
        get_backend(backend)
    return to_native(find_int8(model, weights, told), backend, consume=True)


def load_float_model(
    model: str, weights: str | None, told: Mapping[str, Any] | None = None
) -> nn.Module:
    """Loads the float model that a MODEL argument names, to quantize or to measure.

    Args:
        model: A model of the zoo, a file of float weights, or a folder of `qzoo finetune` or
            references/train.py.
        weights: Which of torchvision's weights; None takes DEFAULT.
        told: What the user says of a state dict: keywords of `load_float`.

    Raises:
        QzooError: An unknown model, weights or file, weights given for a file, or an int8 file.
    """
    require_torch("A float model")
    from ..importers.checkpoint import load_float
    from ..registry import get_entry, get_model

    told = told or {}
    if is_name(model):
        _check_told(model, told)
        extra: dict[str, Any] = {"aux_logits": False} if get_entry(model).aux else {}
        return get_model(model, weights=weights or "DEFAULT", **extra).eval()
    _check_no_weights(model, weights)
    path = float_file(model)
    if path.is_file() and not is_float_checkpoint(path, told.get("part")) and _is_int8(path):
        raise ArgumentError(f"{path} is already int8: name the float weights it was made of.")
    return _with_transforms(load_float(path, **told), path)


def _check_told(model: str, told: Mapping[str, Any]) -> None:
    """Checks that nothing is said of a state dict where there is none.

    Raises:
        ArgumentError: Something is.
    """
    if told:
        names = {"model": "--arch", "part": "--part", "transform_input": "--transform-input"}
        given = ", ".join(names[key] for key in told)
        raise ArgumentError(f"{model} is no state dict, but says itself what it is: drop {given}.")


def _with_transforms(model: nn.Module, path: Path) -> nn.Module:
    """Takes the usual transforms of its architecture for a model that came without, with a word."""
    from ..native.model import attach_info, model_info
    from ..registry import get_entry
    from ..transforms import describe

    info = model_info(model)
    if info.transforms is not None:
        return model
    usual = next(iter(get_entry(info.architecture).float_weights))
    transforms = describe(usual.transforms)
    print_warning(
        f"{path} does not say how its pictures are prepared, so they are as for {usual!r}: resized "
        f"to {transforms['resize_size']}, cut to {transforms['crop_size']} pixels. If that is not "
        "how it was trained, write a file that says so: qzoo convert --like WEIGHTS, or "
        "qzoo.save_float(model, path, transforms=...)."
    )
    return attach_info(model, dataclasses.replace(info, transforms=transforms))


def file_of(model: str) -> Path | None:
    """Returns the file that is read for a MODEL argument; None for one on the Hub."""
    if model.startswith(HUB):
        return None
    return float_file(model) if is_float_file(model) else int8_file(model)


def is_float_file(model: str, part: str | None = None) -> bool:
    """Says whether a MODEL argument is a file of float weights, or a folder of nothing else.

    Args:
        model: The argument.
        part: Key of the state dict in a training checkpoint.
    """
    if model.startswith(HUB) or is_name(model):
        return False
    try:
        return is_float_checkpoint(int8_file(model), part)
    except ArtifactError:  # a folder without an int8 model
        return is_float_checkpoint(float_file(model))


def existing(path: Path) -> Path:
    """Returns a path that leads to something.

    Raises:
        ArtifactError: It leads nowhere.
    """
    if not path.exists():
        hub = f" (a repository on the Hub is written {HUB}{path})" if len(path.parts) == 2 else ""
        raise ArtifactError(f"{path} does not exist{hub}; check the path or download it first.")
    return path


def _check_no_weights(model: str, weights: str | None) -> None:
    if weights is not None:
        raise ArgumentError(f"{model} is a file, which has its own weights: drop --weights.")


def _is_int8(path: Path) -> bool:
    try:
        read_model(path)
    except (ArtifactError, ArgumentError):
        return False
    return True
