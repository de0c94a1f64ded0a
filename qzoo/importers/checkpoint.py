"""Float weights as files: those that say which model they are, and anybody's state dicts."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from .._core import strict_json
from .._core.files import File, reading, write_atomically
from ..artifact.folders import float_file
from ..artifact.format import ModelInfo, canonical_json, check_info
from ..artifact.layers import shape_problem
from ..errors import ArgumentError, ArtifactError, QzooError
from ..native.model import attach_info, model_info
from ..pictures.classes import class_names
from ..registry import get_entry, model_name
from .architecture import head_of, recognize, transform_input_keyword
from .float_files import FLOAT_HEADER, float_state, is_float_checkpoint, read_weights
from .names import classes_of, warn_of_others
from .plan import without_aux

__all__ = ["float_bytes", "is_float_checkpoint", "load_float", "save_float"]

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)
_COUNTER = "num_batches_tracked"


def save_float(model: nn.Module, path: str | os.PathLike[str], **info: Any) -> None:
    """Writes float weights with a description of the model, whole or not at all.

    Args:
        model: A float model from one of the zoo's builders, perhaps fine-tuned.
        path: The file; usually ends in ".safetensors".
        **info: Fields of `ModelInfo` to record instead of what the model carries, such as
            `classes=["cat", "dog"]`, `transforms=ImageClassification(crop_size=224)`.

    Raises:
        ArtifactError: The model is not of the zoo, or the file cannot be written.
    """
    write_atomically(path, float_bytes(model, **info))


def float_bytes(model: nn.Module, **info: Any) -> bytes:
    """Returns what `save_float` writes.

    Args:
        model: A float model from one of the zoo's builders.
        **info: Fields of `ModelInfo` to record instead of what the model carries.

    Raises:
        ArtifactError: The model is not of the zoo.
    """
    known = dataclasses.replace(model_info(model), **info).to_dict()
    tensors = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    return to_safetensors(tensors, metadata={FLOAT_HEADER: canonical_json(known)})


def load_float(
    path: str | os.PathLike[str] | File,
    model: str | None = None,
    *,
    part: str | None = None,
    classes: list[str] | str | None = None,
    transforms: Any = None,
    **kwargs: Any,
) -> nn.Module:
    """Builds the float model whose weights a file holds; runs no code from the file.

    The file is one that `save_float` wrote, which says itself what it is; or a state dict
    (`torch.save(model.state_dict(), path)`, or the same by safetensors), alone or in a training
    checkpoint, of a model of torchvision or the zoo. Its architecture, widths and number of
    classes are told from the names and shapes of the weights. Auxiliary classifiers of GoogLeNet
    and Inception are left out.

    Args:
        path: The file, or a folder of `qzoo finetune` or references/train.py.
        model: The registry's name of the architecture, where it cannot be told; of a file that
            says what it is, it must be that.
        part: Key of the state dict in a training checkpoint ("model_ema").
        classes: Class names in the order of the logits.
        transforms: How pictures are prepared, such as an `ImageClassification`.
        **kwargs: The model's own keywords that no state dict tells, such as `transform_input` of
            GoogLeNet and Inception (True if it descends from torchvision's pretrained weights).

    Returns:
        The model in eval mode, with float32 weights on the CPU.

    Raises:
        ArtifactError: The file is missing, damaged, of another kind or for another model.
        ArgumentError: The model cannot be told, or the arguments do not fit the file.
        UnknownNameError: There is no model of this name.
    """
    given = {"model": model, "part": part, "classes": classes, "transforms": transforms, **kwargs}
    given = {key: value for key, value in given.items() if value is not None}
    with reading(path if isinstance(path, File) else float_file(path)) as file:
        metadata, entries = read_weights(file, part, tensors=True)
        if FLOAT_HEADER in metadata:
            if others := [key for key in given if key != "model"]:
                raise ArgumentError(
                    f"{file.path} says itself what it is: drop {', '.join(others)}."
                )
            return _described_model(file, metadata[FLOAT_HEADER], entries, model)
    own = float_state(file, entries)
    warn_of_others(entries)
    try:
        info = _told(own, model, kwargs)
    except QzooError as error:
        raise type(error)(f"{file.path}: {error}") from None
    info = dataclasses.replace(info, classes=classes, transforms=transforms)
    check_info(info)
    return _built(file, own, info)


def _told(entries: Mapping[str, Any], model: str | None, kwargs: Mapping[str, Any]) -> ModelInfo:
    """Returns what a state dict and the user tell of its model."""
    name, widths = recognize(entries, model)
    entry = get_entry(name)
    known = {**widths, **{key: value for key, value in kwargs.items() if value is not None}}
    known |= transform_input_keyword(name, known.pop("transform_input", None))
    if entry.aux:
        known["aux_logits"] = False
    classes = classes_of(entries, head_of(name))
    if classes != known.setdefault("num_classes", classes):
        raise ArgumentError(
            f"The weights are those of {classes} classes, not of {known['num_classes']}: leave "
            "num_classes out."
        )
    if classes == 1000:
        del known["num_classes"]
    return ModelInfo(name, known)


def _described_model(
    file: File, header: str, entries: Mapping[str, Any], wanted: str | None
) -> nn.Module:
    """Builds the model that a file of `save_float` describes, which must be the one wanted."""
    try:
        described = strict_json.parse(header)
        fields = {field.name for field in dataclasses.fields(ModelInfo)}
        if not isinstance(described, dict) or not {"architecture"} <= set(described) <= fields:
            raise ValueError("it lacks or has too much of the fields of a model")
        info = ModelInfo(**described)
        check_info(info)
        built = _built(file, entries, info)
    except (QzooError, ValueError) as error:
        reason = str(error).removeprefix(f"{file.path} ")
        raise ArtifactError(
            f"{file.path} is damaged, or does not hold what it says: {reason}"
        ) from None
    if wanted is not None and model_name(wanted) != info.architecture:
        raise ArgumentError(
            f"{file.path} holds a {info.architecture}, not a {wanted}: leave --model out (in "
            "Python, model=)."
        )
    return built


def _built(file: File, entries: Mapping[str, Any], info: ModelInfo) -> nn.Module:
    """Builds the model with these weights, once it is sure that they fit and nothing is missing.

    Raises:
        ArtifactError: They do not fit, or some are missing.
    """
    entry = get_entry(info.architecture)
    model = entry.skeleton(info.builder_kwargs)
    wanted = model.state_dict()
    own = {**without_aux(entry.name, entries), **{k: v for k, v in entries.items() if k in wanted}}
    if problem := _misfit(wanted, own) or _misnamed(info, own):
        raise ArtifactError(f"{file.path} does not fit {entry.name}: {problem}")
    # In float32, whatever the process makes by default.
    model = model.float().to_empty(device="cpu")
    # Files from before PyTorch 0.4.1 do not count batches.
    zero = torch.tensor(0, dtype=torch.int64, device="cpu")
    model.load_state_dict({key: own.get(key, zero) for key in wanted})
    return attach_info(model, info)


def _misnamed(info: ModelInfo, own: Mapping[str, Any]) -> str | None:
    """Returns what is wrong with the class names, None if nothing is."""
    names = class_names(info.classes)
    classes = classes_of(own, head_of(info.name))
    if names is None or len(names) == classes:
        return None
    return f"it has {classes} logits and {len(names)} class names."


def _misfit(wanted: Mapping[str, Tensor], own: Mapping[str, Any]) -> str | None:
    """Returns the first thing that is wrong with the weights of a model, None if nothing is."""
    missing = [k for k in wanted if k not in own and not k.endswith(_COUNTER)]
    extra = [k for k, value in own.items() if k not in wanted and isinstance(value, Tensor)]
    if missing or extra:
        lacks = f"lacks {len(missing)} tensors (such as {missing[0]!r})" if missing else ""
        has = f"has {len(extra)} too many (such as {extra[0][:80]!r})" if extra else ""
        return (
            f"it {' and '.join(filter(None, (lacks, has)))}, so it is incomplete, or for another "
            "model or other keywords."
        )
    for key, tensor in wanted.items():
        value = own.get(key, tensor)
        if not isinstance(value, Tensor):
            return f"{key!r} is no tensor, but {str(value)[:60]}."
        if tuple(value.shape) != tuple(tensor.shape):
            if key.endswith(".weight"):
                name = key.removesuffix(".weight")
                return shape_problem(name, tuple(value.shape), tuple(tensor.shape))
            return f"{key!r} has the shape {tuple(value.shape)}, not {tuple(tensor.shape)}."
        if value.dtype not in (_FLOATS if tensor.is_floating_point() else _INTEGERS):
            return f"{key!r} holds {value.dtype}, not {tensor.dtype}."
    return None
