"""Copies of float models: in eval mode on the CPU, batch norm folded."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ArgumentError, QuantizationWarning, warn
from ...native.model import is_int8, model_info
from ...registry import get_entry

#: What layers hold that becomes part of an int8 model, under PyTorch's names.
_NUMBERS = ("weight", "bias", "running_mean", "running_var")


def fused_copy(model: nn.Module) -> nn.Module:
    """Returns a copy of a float model of the zoo in eval mode, batch norm folded, on the CPU.

    Raises:
        ArgumentError: The model is already int8, or is not one that can be fused.
        ArtifactError: The model does not come from one of qzoo's builders.
    """
    return fuse(float_copy(model))


def float_copy(model: nn.Module) -> nn.Module:
    """Returns a copy of a float model of the zoo in eval mode, without gradients, on the CPU.

    Hooks and auxiliary classifiers are left out.

    Raises:
        ArgumentError: The model is already int8, cannot be copied, or has weights that are not
            finite real numbers.
        ArtifactError: The model does not come from one of qzoo's builders.
    """
    model_info(model)
    if is_int8(model):
        raise ArgumentError(
            "This model is already int8: quantize the float model that it was made from."
        )
    if any(p.is_meta for p in model.parameters()):
        raise ArgumentError(
            'This model is on the device "meta", where weights hold no values: build it on the CPU '
            'and load its weights there (with torch.device("cpu"): ...).'
        )
    if model.training:
        warn(
            "The model is in train mode; a copy in eval mode is quantized, without dropout and "
            "with the batch norms' running statistics.",
            QuantizationWarning,
        )
    plain = without_hooks(eval_copy(model, torch.float32))
    for name, key in _not_finite(plain):
        raise ArgumentError(
            f"The tensor '{name}.{key}' of this model has values that are not finite (NaN or "
            "infinity): go back to a checkpoint from before its training diverged."
        )
    return plain


def eval_copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Returns a copy of a float model in eval mode, without gradients, on the CPU; hooks stay.

    Auxiliary classifiers are left out.

    Args:
        model: The model.
        dtype: Of all its numbers.

    Raises:
        ArgumentError: It cannot be copied, or has weights that are computed from other tensors.
    """
    _check_stored(model)
    try:
        twin: Any = copy.deepcopy(model).to("cpu", dtype).eval()
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ArgumentError(
            f"This {type(model).__name__} cannot be copied to the CPU ({reason}): quantize one "
            "whose weights are ordinary tensors."
        ) from None
    # Auxiliary classifiers serve training only.
    for attribute in get_entry(model_info(model).architecture).aux:
        setattr(twin, attribute, None)
        twin.aux_logits = False
    return twin.requires_grad_(False)


def without_hooks(model: nn.Module) -> nn.Module:
    """Removes the forward hooks of a model's modules, in place, and returns it."""
    for module in model.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return model


def fuse(plain: nn.Module) -> nn.Module:
    """Returns a copy of a float model with batch norm folded into convolutions.

    Raises:
        ArgumentError: The model is not one that can be fused, or folding gives numbers that are
            not finite.
    """
    fused: Any = copy.deepcopy(plain)
    try:
        fused.fuse_model(is_qat=False)
    except (AttributeError, NotImplementedError, TypeError, AssertionError) as error:
        reason = unlike_builder(plain) or error
        raise ArgumentError(
            f"This {type(plain).__name__} cannot be fused ({reason}): take the builder's "
            "modules; a subclass that changes blocks needs a fuse_model(is_qat=None) that fits "
            "them."
        ) from None
    for name, key in _not_finite(fused):
        raise ArgumentError(
            f"Folding batch norm into {name!r} gives a {key} that is not finite: a variance below "
            "0 or numbers too large for float32."
        )
    return fused.requires_grad_(False)


def unlike_builder(model: nn.Module) -> str | None:
    """Says which module is the first that has another type than its builder gives it, or None."""
    info = model_info(model)
    entry = get_entry(info.architecture)
    own, builders = (
        {name: type(module).__name__ for name, module in modules.named_modules() if name}
        for modules in (model, entry.skeleton(info.builder_kwargs))
    )
    for name in [*builders, *own]:
        found, wanted = (kinds.get(name, "missing") for kinds in (own, builders))
        if found != wanted and name.partition(".")[0] not in entry.aux:
            return f"{name!r} is {found}, and in {info.architecture} it is {wanted}"
    return None


def _check_stored(model: nn.Module) -> None:
    """Checks that every weight is a parameter of real numbers, not computed anew from others.

    Raises:
        ArgumentError: One is not; the message names it.
    """
    for name, module in model.named_modules():
        for key, tensor in _numbers(module):
            if not tensor.is_floating_point():
                raise ArgumentError(
                    f"The tensor '{name}.{key}' of this model is {tensor.dtype}: weights are real "
                    "floating-point numbers."
                )
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
            for key in ("weight", "bias"):
                if key not in module._parameters:
                    raise ArgumentError(
                        f"The {key} of {name!r} is computed from other tensors (a parametrization, "
                        "weight norm or pruning): make it permanent first, for example with "
                        "torch.nn.utils.parametrize.remove_parametrizations or "
                        "torch.nn.utils.prune.remove."
                    )


def _numbers(module: nn.Module) -> list[tuple[str, Tensor]]:
    own = {**module._parameters, **module._buffers}
    return [(key, value) for key in _NUMBERS if (value := own.get(key)) is not None]


def _not_finite(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Yields module and name of what becomes part of an int8 model and is not finite."""
    for name, module in model.named_modules():
        for key, tensor in _numbers(module):
            if not is_finite(tensor):
                yield name, key


def is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite; looks at both ends, which takes no memory."""
    return not tensor.numel() or all(
        math.isfinite(float(end)) for end in torch.aminmax(tensor.detach())
    )
