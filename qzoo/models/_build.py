"""What every builder does: build, load weights, replace the head, quantize. Written once."""

from __future__ import annotations

import contextlib
import dataclasses
import numbers
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..artifact.format import Artifact, ModelInfo
from ..artifact.layers import RANGED_OPS, Layer, weight_tensors
from ..backends import Backend, get_backend
from ..builder_kwargs import builder_keywords
from ..errors import ArgumentError, UncalibratedWarning
from ..native.engines import default_backend
from ..native.layers import float_weights
from ..native.model import attach_info, to_native
from ..pictures.classes import IMAGENET
from ..registry import BUILD_ERRORS, ModelEntry, build_failure, get_entry
from ..transforms import describe
from ..weights import (
    QuantizedWeightsEnum,
    float_state_dict,
    legacy_weights,
    resolve_weights,
)
from .plan import plan

#: Placeholder activation ranges of a model without weights: what normalized pictures and
#: batch-normalized activations mostly stay within.
PLACEHOLDER_RANGE = 4.0


def build_model(
    name: str,
    weights: Any,
    progress: bool,
    quantize: bool,
    backend: str | None,
    kwargs: dict[str, Any],
) -> Any:
    """Builds a model of the zoo; every public builder calls this.

    Args:
        name: The registry's name.
        weights: A member of the int8 (`quantize=True`) or float enum, its name, or None.
        progress: Whether a download shows a progress bar.
        quantize: Whether to return the native int8 model, in eval mode, instead of the float one.
        backend: Numeric configuration; None takes the weights', else this machine's best.
        kwargs: The model's own keywords.

    Raises:
        ArgumentError: Arguments that do not fit together.
        UnknownNameError: An unknown weights member or backend.
        DownloadError: The weights could not be fetched.
    """
    entry = get_entry(name)
    classes = kwargs.get("num_classes", 1)
    if not isinstance(classes, numbers.Integral) or isinstance(classes, bool) or classes < 1:
        raise ArgumentError(
            f"Cannot build {name}: num_classes should be a whole number above 0, not {classes!r}. "
            "Models without a head (feature extractors) cannot be quantized and stored yet."
        )
    if backend is not None:
        get_backend(backend)
    if "pretrained" in kwargs:
        weights = legacy_weights(
            kwargs.pop("pretrained"), weights, entry.weights if quantize else entry.float_weights
        )
    member = resolve_weights(weights, quantize, entry.weights, entry.float_weights)
    if not quantize:
        return _float_model(entry, member, progress, kwargs)
    if member is None:
        return _uncalibrated_model(entry, get_backend(backend or default_backend()), kwargs)
    return _int8_model(entry, member, progress, backend, kwargs)


def _float_model(
    entry: ModelEntry, member: Any, progress: bool, kwargs: dict[str, Any]
) -> nn.Module:
    if member is None:
        model = _construct(entry, kwargs)  # draws from the global random state, like any module
        return attach_info(model, ModelInfo(entry.name, _plain_kwargs(kwargs)))
    wanted = len(member.meta["categories"])
    num_classes = kwargs.get("num_classes", wanted)
    full = {**entry.pretrained_kwargs, **kwargs, "num_classes": num_classes}
    if entry.aux:
        full |= {"aux_logits": True, "init_weights": False}
    fresh_head = num_classes != wanted
    # What a checkpoint overwrites is drawn aside; a fresh head is the user's, and so are its draws.
    with contextlib.nullcontext() if fresh_head else torch.random.fork_rng(devices=[]):
        model = _construct(entry, full)
    state = dict(float_state_dict(member, progress))
    _load_with_fresh_head(model, state, wanted, num_classes, repr(member))
    if entry.aux and not kwargs.get("aux_logits", False):
        for attribute, value in {"aux_logits": False, **dict.fromkeys(entry.aux)}.items():
            setattr(model, attribute, value)
    stored = {**full, "aux_logits": bool(kwargs.get("aux_logits", False))} if entry.aux else full
    info = ModelInfo(
        entry.name,
        _plain_kwargs(stored),
        classes=None if fresh_head else IMAGENET,
        transforms=describe(member.transforms),
    )
    return attach_info(model, info)


def _construct(entry: ModelEntry, kwargs: Mapping[str, Any]) -> nn.Module:
    defaults = {"init_weights": True} if entry.aux else {}
    try:
        return entry.construct(**{**defaults, **kwargs})
    except BUILD_ERRORS as error:
        raise ArgumentError(build_failure(entry.name, kwargs, error)) from None


def _load_with_fresh_head(
    model: nn.Module, state: dict[str, Tensor], old: int, new: int, weights: str
) -> None:
    """Loads a checkpoint, leaving the layers that end in another number of classes as they are."""
    own = model.state_dict()
    for key, value in list(state.items()):
        if key in own and own[key].shape != value.shape:
            same = own[key].shape[0] == new and value.shape[0] == old
            if not same or own[key].shape[1:] != value.shape[1:]:
                raise ArgumentError(
                    f"The weights {weights} do not fit a model with these keywords: {key} has the "
                    f"shape {tuple(value.shape)} there and {tuple(own[key].shape)} here."
                )
            state[key] = own[key]
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ArgumentError(
            f"The weights {weights} do not fit a model with these keywords: {error}"
        ) from None


def _int8_model(
    entry: ModelEntry,
    member: QuantizedWeightsEnum,
    progress: bool,
    backend: str | None,
    kwargs: dict[str, Any],
) -> nn.Module:
    classes = len(member.meta["categories"])
    if kwargs.get("num_classes", classes) != classes:
        raise ArgumentError(
            f"{member!r} has {classes} classes, and an int8 model cannot get a fresh head "
            f"(num_classes={kwargs['num_classes']}): build with quantize=False, fine-tune, then "
            "quantize, or leave num_classes out."
        )
    artifact = member.artifact(progress)
    _check_same_keywords(entry, member, artifact.info.builder_kwargs, kwargs)
    return to_native(artifact, backend, consume=True)


def _check_same_keywords(
    entry: ModelEntry,
    member: QuantizedWeightsEnum,
    stored: Mapping[str, Any],
    kwargs: Mapping[str, Any],
) -> None:
    """Checks that the user's keywords are known to the model and are those of the weights."""
    own = {k: v for k, v in _plain_kwargs(kwargs).items() if k != "num_classes"}
    if not own:
        return
    entry.skeleton({**stored, **own})  # says what is wrong with keywords that build nothing
    made_with = {**builder_keywords(entry.construct), **stored}
    for key, value in own.items():
        if key not in made_with or value != made_with[key]:
            raise ArgumentError(
                f"{member!r} was made with {key}={made_with.get(key)!r}, so {key}={value!r} "
                "cannot be had with it: leave the argument out."
            )


def _uncalibrated_model(entry: ModelEntry, backend: Backend, kwargs: dict[str, Any]) -> nn.Module:
    plain = _plain_kwargs(kwargs)
    fused, planned = plan(entry, plain)
    warnings.warn(
        f"This int8 {entry.name} has random weights and placeholder activation ranges: load an "
        "int8 state_dict into it, or pass weights='DEFAULT'.",
        UncalibratedWarning,
        stacklevel=4,
    )
    layers = {name: _with_placeholder_range(layer, backend) for name, layer in planned.items()}
    tensors: dict[str, Any] = {}
    generator = torch.Generator().manual_seed(0)
    for name, layer in layers.items():
        if layer.op in ("conv2d", "linear"):
            weight, bias = float_weights(fused, name)
            tensors |= _random_weight(name, weight, bias, backend, generator)
    return to_native(Artifact(ModelInfo(entry.name, plain, backend.name), layers, tensors))


def _with_placeholder_range(layer: Layer, backend: Backend) -> Layer:
    if layer.op not in RANGED_OPS:
        return layer
    # add_relu and cat of rectified branches give no negative values, but a plain add may.
    low = 0.0 if layer.relu else -PLACEHOLDER_RANGE
    scale = (PLACEHOLDER_RANGE - low) / backend.activation_max
    return dataclasses.replace(layer, scale=scale, zero_point=round(-low / scale))


def _random_weight(
    name: str, weight: Tensor, bias: Tensor | None, backend: Backend, generator: torch.Generator
) -> dict[str, Any]:
    """Draws int8 weights whose real values have the variance 4 / fan_in.

    That is twice Kaiming's: gates and averaging would otherwise let the signal of the deeper models
    fade to less than one step of the placeholder ranges, and those cut what grows too large.
    """
    values = torch.randint(
        -127, 128, weight.shape, generator=generator, dtype=torch.int8, device="cpu"
    )
    fan_in = weight[0].numel()
    scale = (4 / fan_in) ** 0.5 / (127 / 3**0.5)
    scales = torch.full(
        (weight.shape[0],) if backend.per_channel else (), scale, dtype=torch.float32, device="cpu"
    )
    zeros = (
        None if bias is None else torch.zeros(weight.shape[0], dtype=torch.float32, device="cpu")
    )
    return weight_tensors(name, values, scales, torch.zeros_like(scales), zeros)


def _plain_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keywords to store: `init_weights` says nothing about a finished model."""
    return {k: v for k, v in kwargs.items() if k != "init_weights"}
