"""The two ways between an artifact and a native int8 model, and `save` and `load` on top."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .._core.versions import package_versions as package_versions
from ..artifact.folders import int8_file
from ..artifact.format import Artifact, ModelInfo
from ..artifact.given import HasArtifact as HasArtifact
from ..artifact.given import Int8Model as Int8Model
from ..artifact.given import as_artifact as as_artifact
from ..artifact.layers import Layer
from ..backends import BACKENDS, SATURATING_ENGINES, get_backend
from ..errors import ArtifactError, BackendWarning, UnknownNameError
from ..registry import get_entry
from .engines import available_engines, default_backend, quantized_engine, run_engine
from .layers import check_fit, with_idle_layers
from .markers import TORCH_AO, require_torch_ao
from .qnnpack_sums import check_sums
from .substitute import SubstituteModel, substitute

_INFO = "_qzoo_info"
#: The engine that a native model's weights are packed for, which packed weights do not say.
_ENGINE = "_qzoo_engine"


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


def to_native(artifact: Artifact, backend: str | None = None, consume: bool = False) -> nn.Module:
    """Builds the native int8 model of an artifact: no float weights, no forward pass.

    Args:
        artifact: The stored model.
        backend: Whose engine runs it; None takes the artifact's own backend. The numbers stay
            those of the artifact.
        consume: Whether to empty `artifact.tensors` on the way, so that each weight is in memory
            once and not twice.

    Returns:
        The model in eval mode, for CPU tensors: float32 [N, 3, H, W] in, float32 logits out.

    Raises:
        ArtifactError: The artifact does not fit its architecture.
        UnknownNameError: An unknown backend.
    """
    if backend is not None:
        get_backend(backend)
    info = artifact.info
    if info.architecture is None:
        reason = "This model comes from no builder of qzoo, so that PyTorch has no modules for it"
        return attach_info(substitute(artifact, reason, stacklevel=2), info)
    skeleton = skeleton_of(info)
    if not TORCH_AO:
        check_fit(skeleton, _layers(artifact, skeleton), artifact.tensors)
        reason = "This PyTorch has no torch.ao, which native int8 models are made of"
        return attach_info(substitute(artifact, reason, stacklevel=2), info)
    wide = has_wide_depthwise(artifact)
    if wide and backend in SATURATING_ENGINES:
        warnings.warn(
            f"The depthwise convolutions of the engine {backend} cut large sums of 8-bit "
            f"activations off, which can change answers: leave backend out (it takes "
            f"{info.backend}) unless you know that yours stay small.",
            BackendWarning,
            stacklevel=3,
        )
    return _build(skeleton, artifact, run_engine(backend or str(info.backend), wide), consume)


def _build(skeleton: nn.Module, artifact: Artifact, engine: str, consume: bool) -> nn.Module:
    from . import eager

    if engine == "qnnpack":
        check_sums(artifact.graph)
    if consume:
        artifact.__dict__.pop("graph", None)  # which holds them, too
    with quantized_engine(engine):
        tensors = artifact.tensors if consume else dict(artifact.tensors)
        model = eager.build_native(skeleton, _layers(artifact, skeleton), tensors)
    setattr(model, _ENGINE, engine)
    return attach_info(model, artifact.info)


def _layers(artifact: Artifact, skeleton: nn.Module) -> Mapping[str, Layer]:
    if artifact.structure is None:
        return artifact.layers
    graph = {node.name for node in artifact.structure.nodes}
    return {
        name: layer
        for name, layer in with_idle_layers(skeleton, artifact.layers).items()
        if name in artifact.layers or name not in graph  # a ReLU of its own is in the graph
    }


def is_int8(model: nn.Module) -> bool:
    """Whether a model is a native int8 one, or stands in for one."""
    if isinstance(model, SubstituteModel):
        return True
    if not TORCH_AO:
        return False
    from . import eager

    return eager.is_quantized(model)


def copy_model(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Returns a deep copy; weights are packed again for the engine that the model was built for.

    PyTorch's int8 modules pack a copy's weights for the process's engine, which may round, and even
    saturate, where the model's own does not.
    """
    twin = memo[id(model)] = type(model).__new__(type(model))
    engine = getattr(model, _ENGINE, None)
    with quantized_engine(engine) if engine else contextlib.nullcontext():
        twin.__setstate__(copy.deepcopy(model.__dict__, memo))
    return twin


def pickled_parts(model: nn.Module) -> tuple[Artifact, str] | None:
    """Returns what `unpickled` builds the model of; None for one that no artifact was built into.

    PyTorch's int8 convolutions come out of a pickle without what every module needs to run.
    """
    engine = getattr(model, _ENGINE, None)
    if engine is None:
        return None
    try:
        return from_native(model), engine
    except ArtifactError:  # a part was replaced by one of the user's own
        return None


def unpickled(artifact: Artifact, engine: str) -> nn.Module:
    """Builds a pickled native model, for its own engine where this machine has it."""
    if not TORCH_AO:
        return to_native(artifact)
    if engine not in available_engines():
        engine = run_engine(str(artifact.info.backend), has_wide_depthwise(artifact))
    return _build(skeleton_of(artifact.info), artifact, engine, consume=True)


def has_wide_depthwise(artifact: Artifact) -> bool:
    """Whether a model has depthwise convolutions whose inputs use all 8 bits."""
    if BACKENDS[str(artifact.info.backend)].reduce_range:
        return False
    return any(
        layer.op == "conv2d"
        and layer.groups > 1
        and layer.groups == len(artifact.tensors[f"{name}.weight"])
        for name, layer in artifact.layers.items()
    )


def skeleton_of(info: ModelInfo) -> nn.Module:
    """Makes the float module of a model's architecture, on the meta device and not fused.

    Raises:
        ArtifactError: The model comes from no builder, or its builder or keywords are unknown.
    """
    if info.architecture is None:
        raise ArtifactError(
            "This model comes from no builder of qzoo, so that PyTorch has no modules for it: run "
            "it with qzoo.compile."
        )
    try:
        entry = get_entry(info.architecture)
    except UnknownNameError as error:
        raise ArtifactError(f"The artifact is for an architecture unknown here: {error}") from None
    try:
        return entry.skeleton(info.builder_kwargs)
    except Exception as error:  # any keyword may be nonsense
        raise ArtifactError(
            f"The artifact's builder arguments {str(info.builder_kwargs)[:200]} do not build a "
            f"{info.architecture}: {str(error)[:200]}"
        ) from None


def from_native(model: nn.Module, **info: Any) -> Artifact:
    """Reads a native int8 model of the zoo into an artifact, without losing a bit.

    Args:
        model: What a builder returned, or what PyTorch's eager `convert` made of it.
        **info: Fields of `ModelInfo` that replace what the model carries.

    Raises:
        ArtifactError: The model is not of the zoo, a layer of it is not int8, or a part of it was
            replaced by one that its builder does not make.
    """
    if isinstance(model, SubstituteModel):
        return as_artifact(model.artifact, **info)
    known = dataclasses.replace(model_info(model), **info)
    require_torch_ao(f"Reading a native {known.architecture}")
    from . import eager

    if known.backend is None:
        # The numbers were chosen by the user's own flow, most likely for the engine it runs on.
        engine = torch.backends.quantized.engine
        known = dataclasses.replace(
            known, backend=engine if engine in BACKENDS else default_backend()
        )
    layers, tensors = eager.read_native(model)
    known = _with_own_head(known, layers, tensors, keep_classes="classes" in info)
    # What cannot be loaded again must not be saved.
    skeleton = skeleton_of(known)
    check_fit(skeleton, layers, tensors)
    _check_parts(model, skeleton, layers)
    return Artifact(known, layers, tensors, package_versions())


def as_callable(model: Any) -> Any:
    """Returns what can be called with images: the native model of an artifact or a path.

    Anything else (a module, float or int8, a compiled model, a function) is returned as it is.

    Raises:
        ArtifactError: The path leads to no int8 model.
    """
    if isinstance(model, (Artifact, str, os.PathLike)):
        return to_native(as_artifact(model))
    return model


#: Attributes that decide what a pool computes.
_SETTINGS = (
    "kernel_size", "stride", "padding", "dilation", "ceil_mode", "count_include_pad",
    "divisor_override", "output_size",
)  # fmt: skip


def _check_parts(model: nn.Module, skeleton: nn.Module, layers: dict[str, Layer]) -> None:
    """Checks that what an artifact has no numbers of is as the builder makes it.

    Args:
        model: A native model.
        skeleton: What its builder makes.
        layers: What the artifact will hold of it.

    Raises:
        ArtifactError: A pool, an activation or a forward pass is another; the message names it.
    """
    own, builders = dict(model.named_modules()), dict(skeleton.named_modules())
    for name in dict.fromkeys([*builders, *own]):
        parents = [name[:at] for at, letter in enumerate(name) if letter == "."]
        if name in layers or any(parent in layers for parent in parents):
            continue  # the artifact has the numbers of a layer and of all inside it
        found, wanted = _part(own.get(name)), _part(builders.get(name))
        if found != wanted:
            raise ArtifactError(
                f"{name or 'The model'!r} of this int8 model is not what {type(skeleton).__name__} "
                "has there, and an artifact holds no forward pass: put the builder's module back, "
                "or quantize again."
            )


def _part(module: nn.Module | None) -> tuple[Any, ...]:
    """Returns what decides what a module without numbers computes."""
    if module is None:
        return ()
    values = [(key, getattr(module, key, None)) for key in _SETTINGS]
    settings = [(k, v) for k, v in values if v is not None]
    pairs = [(k, (v, v) if type(v) is int else v) for k, v in settings]
    return (type(module).forward, module.__dict__.get("forward"), pairs)


def _with_own_head(
    info: ModelInfo, layers: dict[str, Layer], tensors: dict[str, Any], keep_classes: bool
) -> ModelInfo:
    """Takes note of a head that the user put in (`model.fc = nn.Linear(512, 10)`)."""
    head = next((name for name in reversed(layers) if layers[name].op == "linear"), None)
    logits = 1000 if head is None else len(tensors[f"{head}.weight"])
    if logits == info.builder_kwargs.get("num_classes", 1000):
        return info
    kwargs = {**info.builder_kwargs, "num_classes": logits}
    classes = info.classes if keep_classes else None
    return dataclasses.replace(info, builder_kwargs=kwargs, classes=classes)


def save(model: Int8Model, path: str | os.PathLike[str], **info: Any) -> None:
    """Saves an int8 model as an artifact file; `load` gives it back bit for bit.

    Args:
        model: An int8 model in any form that `as_artifact` takes.
        path: The file to write, whole or not at all; usually ends in ".safetensors".
        **info: Fields to record instead of what the model carries, such as
            `classes=["cat", "dog"]`, `transforms=ImageClassification(crop_size=224)`,
            `recipe={...}`, `backend="x86"`.

    Raises:
        ArtifactError: The model is not of the zoo, a layer is not int8, or the file cannot be
            written.
    """
    as_artifact(model, **info).write(path)


def load(path: str | os.PathLike[str], backend: str | None = None) -> nn.Module:
    """Loads an artifact file as a native int8 model, ready to run.

    Args:
        path: A file that `save` wrote, or a folder of `save_pretrained` or `qzoo finetune`.
        backend: Whose engine runs it; None takes the artifact's own backend or, where this
            machine's PyTorch lacks its engine, another with a `BackendWarning`.

    Returns:
        The model in eval mode: float32 [N, 3, H, W] in, float32 logits out.

    Raises:
        ArtifactError: The file is missing, truncated, changed, of a later version, or for an
            architecture that is not known here.
        UnknownNameError: An unknown backend.
    """
    path = int8_file(path)
    artifact = Artifact.read(path)
    try:
        return to_native(artifact, backend, consume=True)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from None
