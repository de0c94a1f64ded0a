"""The two ways between an artifact and a native int8 model, and `save` and `load` on top."""

from __future__ import annotations

import dataclasses
import os
import platform
from importlib import metadata
from typing import Any

import torch
import torchvision
from torch import nn

from .. import _torch_ao
from ..backends import default_backend, get_backend, quantized_engine, run_engine
from ..errors import ArtifactError, UnknownNameError
from ..registry import get_entry
from .format import Artifact, ModelInfo

_INFO = "_qzoo_info"


def attach_info(model: nn.Module, info: ModelInfo) -> nn.Module:
    """Writes on a model what it is; `model_info` reads it. Returns the model."""
    setattr(model, _INFO, info)
    return model


def model_info(model: nn.Module) -> ModelInfo:
    """Returns what a model of the zoo is.

    Raises:
        ArtifactError: The model does not come from one of qzoo's builders.
    """
    info = getattr(model, _INFO, None)
    if not isinstance(info, ModelInfo):
        raise ArtifactError(
            f"This {type(model).__name__} was not made by one of qzoo's builders, so its "
            "architecture is unknown: build it with qzoo (same names and keywords as torchvision) "
            "and load your state_dict into it."
        )
    return info


def package_versions() -> dict[str, str]:
    """Returns the versions of qzoo, torch, torchvision and Python that run here."""
    try:
        own = metadata.version("qzoo")
    except metadata.PackageNotFoundError:
        own = "source"
    return {
        "qzoo": own,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
    }


def to_native(artifact: Artifact, backend: str | None = None) -> nn.Module:
    """Builds the native int8 model of an artifact: no float weights, no forward pass.

    Args:
        artifact: The stored model.
        backend: Whose engine runs it; None takes the artifact's own backend. The numbers stay
            those of the artifact.

    Returns:
        The model in eval mode, for CPU tensors: float32 [N, 3, H, W] in, float32 logits out.

    Raises:
        ArtifactError: The artifact does not fit its architecture.
        UnknownNameError: An unknown backend.
    """
    if backend is not None:
        get_backend(backend)
    info = artifact.info
    try:
        entry = get_entry(info.architecture)
    except UnknownNameError as error:
        raise ArtifactError(f"The artifact is for an architecture unknown here: {error}") from None
    try:
        skeleton = entry.skeleton(info.builder_kwargs)
    except Exception as error:  # the keywords come from the file, so any of them may be nonsense
        raise ArtifactError(
            f"The artifact's builder arguments {str(info.builder_kwargs)[:200]} do not build a "
            f"{info.architecture}: {str(error)[:200]}"
        ) from None
    with quantized_engine(run_engine(backend or str(info.backend))):
        model = _torch_ao.build_native(skeleton, artifact.layers, artifact.tensors)
    return attach_info(model, info)


def from_native(model: nn.Module, **info: Any) -> Artifact:
    """Reads a native int8 model of the zoo into an artifact, without losing a bit.

    Args:
        model: What a builder returned, or what PyTorch's eager `convert` made of it.
        **info: Fields of `ModelInfo` that replace what the model carries.

    Raises:
        ArtifactError: The model is not of the zoo, or a layer of it is not int8.
    """
    known = dataclasses.replace(model_info(model), **info)
    if known.backend is None:
        known = dataclasses.replace(known, backend=default_backend())
    layers, tensors = _torch_ao.read_native(model)
    return Artifact(known, layers, tensors, package_versions())


def save(model: nn.Module, path: str | os.PathLike[str], **info: Any) -> None:
    """Saves a native int8 model as an artifact file; `load` gives it back bit for bit.

    Args:
        model: What a builder with `quantize=True` returned, or what PyTorch's eager `convert` made
            of a float model of the zoo.
        path: The file to write, whole or not at all; usually ends in ".safetensors".
        **info: Fields to record instead of what the model carries, such as
            `classes=["cat", "dog"]`, `transforms={...}`, `recipe={...}`, `backend="x86"`.

    Raises:
        ArtifactError: The model is not of the zoo, a layer is not int8, or the file cannot be
            written.
    """
    from_native(model, **info).write(path)


def load(path: str | os.PathLike[str], backend: str | None = None) -> nn.Module:
    """Loads an artifact file as a native int8 model, ready to run.

    Args:
        path: A file that `save` wrote.
        backend: Whose engine runs it; None takes the artifact's own backend or, where this
            machine's PyTorch lacks its engine, another with a `BackendWarning`.

    Returns:
        The model in eval mode: float32 [N, 3, H, W] in, float32 logits out.

    Raises:
        ArtifactError: The file is missing, truncated, changed, of a later version, or for an
            architecture that is not known here.
        UnknownNameError: An unknown backend.
    """
    return to_native(Artifact.read(path), backend)
