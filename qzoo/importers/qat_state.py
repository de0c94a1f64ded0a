"""From the state dict of a model prepared for eager QAT to integers, as PyTorch's convert does it.

The formulas are those of PyTorch's observers and of "Quantization and Training of Neural Networks
for Efficient Integer-Arithmetic-Only Inference" (arXiv:1712.05877), in float32, so that the
integers come out bit for bit as `torch.ao.quantization.convert` would give them.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..artifact.layers import check_weight_shape
from ..errors import ArtifactError
from .names import is_numbers
from .pth import in_arrays

_ZERO, _ONE = np.float32(0), np.float32(1)
_EPS = np.array([np.finfo(np.float32).eps])
#: How far PyTorch's QAT weight observers move per step (MovingAverageMinMaxObserver).
_AVERAGING = np.float32(0.01)
# Numpy warns of numbers that are not finite; here they are refused, each by its name.
_no_warnings = functools.partial(np.errstate, all="ignore")
#: Batch norm entries of ConvBn modules before version 2.
_OLD_BATCH_NORM = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "running_mean",
    "running_var": "running_var",
}


class QatState:
    """Reads a QAT state dict, given as arrays or tensors by name, layer by layer."""

    def __init__(self, entries: Mapping[str, Any]) -> None:
        self._entries = entries
        self._eps: Mapping[str, float] = {}
        self._read: set[str] = set()

    @classmethod
    def find(cls, entries: Mapping[str, Any]) -> QatState | None:
        """Returns a reader if the entries are those of a model prepared for QAT, else None."""
        found = any(".weight_fake_quant." in key for key in entries)
        return cls(entries) if found else None

    def use_eps(self, eps: Mapping[str, float]) -> None:
        """Takes the epsilon of each fused layer's batch norm, which state dicts do not hold."""
        self._eps = eps

    def guess_backend(self) -> str:
        """Returns the backend whose QAT configuration has these granularities and ranges."""
        scales = (v for k, v in self._entries.items() if k.endswith(".weight_fake_quant.scale"))
        if not any(is_numbers(s) and math.prod(s.shape) > 1 for s in scales):
            return "qnnpack"
        # Gates have a fixed range (hardsigmoid) and no minimum, so they tell nothing.
        observed = ".activation_post_process.activation_post_process.min_val"
        names = (k.removesuffix(observed) for k in self._entries if k.endswith(observed))
        with _no_warnings():
            return "onednn" if any(self._levels(name) > 128 for name in names) else "fbgemm"

    def output_range(self, name: str, backend: str) -> tuple[float, int]:
        """Returns scale and zero point of the layer's output; 1.0 and 0 if it never ran."""
        low, high, eps = self._observed(f"{name}.activation_post_process")
        if low.size != 1 or bool(low > high):
            return 1.0, 0
        low, high = np.minimum(low, _ZERO).reshape(1), np.maximum(high, _ZERO).reshape(1)
        with _no_warnings():
            levels = 127 if self._levels(name) < 128 else 255
            scale = np.maximum((high - low) / np.float32(levels), eps)
            zero_point = np.clip(np.nan_to_num(-np.rint(low / scale)), 0, levels)
        return float(scale[0]), int(zero_point[0])

    def weight(
        self, name: str, op: str, shape: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        """Returns int8 values, float32 scales, zero points (all 0) and the float bias."""
        with _no_warnings():
            return self._weight(name, shape)

    def _weight(
        self, name: str, shape: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        check_weight_shape(name, self._tensor(f"{name}.weight"), shape)
        weight, bias = self._folded(name)
        low, high, eps = self._weight_range(name, weight)
        if bool((low > high).any()):
            raise ArtifactError(f"The weight of layer {name!r} was never observed in QAT.")
        bound = np.maximum(-np.minimum(low, _ZERO), np.maximum(high, _ZERO))
        scale = np.maximum(bound / np.float32(127.5), eps if bound.ndim else eps[0])
        along = _along(scale, weight) if scale.ndim else scale
        values = np.clip(np.rint(weight * (_ONE / along)), -128, 127).astype(np.int8)
        return values, np.asarray(scale), np.zeros(scale.shape, np.int64), bias

    def check_all_used(self) -> None:
        """Raises `ArtifactError` if a weight of the checkpoint belongs to no layer."""
        weights = {k for k in self._entries if k.endswith(".weight_fake_quant.scale")}
        if extra := sorted(weights - self._read):
            name = extra[0].removesuffix(".weight_fake_quant.scale")
            raise ArtifactError(
                f"The checkpoint has a layer {name!r} that this architecture lacks: it is for "
                "another architecture or other builder arguments."
            )

    def _tensor(self, key: str, unseen: bool = False) -> np.ndarray:
        """Returns an entry as float32.

        Args:
            key: Its name.
            unseen: Whether infinities are allowed, with which observers begin.

        Raises:
            ArtifactError: It is missing, or no tensor of real and finite numbers.
        """
        value = in_arrays(self._entries.get(key))
        if not isinstance(value, np.ndarray):
            raise ArtifactError(
                f"The QAT checkpoint lacks the tensor {key!r}: it is incomplete or of another "
                "architecture."
            )
        if value.dtype.kind != "f":
            raise ArtifactError(
                f"The tensor {key!r} of the QAT checkpoint is {value.dtype}, and should hold real "
                f"floating-point numbers (layer {_layer(key)!r})."
            )
        with _no_warnings():
            value = value.astype(np.float32, copy=False)
        if not bool((~np.isnan(value) if unseen else np.isfinite(value)).all()):
            raise ArtifactError(
                f"The tensor {key!r} of the QAT checkpoint has values that are not finite (NaN or "
                f"infinity): the training of layer {_layer(key)!r} diverged; take an earlier "
                "checkpoint."
            )
        return value

    def _observed(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the observer's minimum, maximum and epsilon inside a fake-quantize module."""
        inner = f"{name}.activation_post_process"
        old = f"{inner}.min_vals" in self._entries  # per-channel observers before version 3
        low = self._tensor(f"{inner}.min_vals" if old else f"{inner}.min_val", unseen=True)
        high = self._tensor(f"{inner}.max_vals" if old else f"{inner}.max_val", unseen=True)
        if low.size == 0 or low.shape != high.shape:
            raise ArtifactError(f"The observer {inner!r} of the QAT checkpoint has seen no data.")
        if bool((np.isinf(low) != np.isinf(high)).any()):
            raise ArtifactError(
                f"The observer {inner!r} of the QAT checkpoint has an endless range (layer "
                f"{_layer(inner)!r})."
            )
        eps = self._tensor(f"{inner}.eps") if f"{inner}.eps" in self._entries else _EPS
        if eps.size != 1:
            raise ArtifactError(
                f"The tensor '{inner}.eps' of the QAT checkpoint is no single number."
            )
        return low, high, eps.reshape(1)

    def _levels(self, name: str) -> float:
        """Returns how many steps the observed range spans: about 127 (7 bits) or 255."""
        low, high, _ = self._observed(f"{name}.activation_post_process")
        scale = self._tensor(f"{name}.activation_post_process.scale")
        if low.size != 1 or scale.size != 1 or bool(low > high):
            return 0.0
        span = np.maximum(high, _ZERO) - np.minimum(low, _ZERO)
        # Halfway between the two, so that a range that moved since does not matter.
        return 255.0 if bool(span / scale > 180) else 127.0

    def _folded(self, name: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns the float weight and bias with batch norm folded in, as PyTorch folds it."""
        weight = self._tensor(f"{name}.weight")
        key = f"{name}.bias"
        bias = None if self._entries.get(key) is None else self._tensor(key)
        if bias is not None and bias.shape != (weight.shape[0],):
            raise ArtifactError(
                f"The tensor {key!r} of the QAT checkpoint has the shape {list(bias.shape)}, and "
                f"its layer {weight.shape[0]} output channels."
            )
        prefix = f"{name}.bn."
        if f"{prefix}running_var" in self._entries:
            norm = {k: self._tensor(f"{prefix}{k}") for k in _OLD_BATCH_NORM}
        elif f"{name}.gamma" in self._entries:
            norm = {k: self._tensor(f"{name}.{v}") for k, v in _OLD_BATCH_NORM.items()}
        else:
            return weight, bias
        if any(v.shape != (weight.shape[0],) for v in norm.values()):
            raise ArtifactError(f"The batch norm of layer {name!r} has the wrong shape.")
        before = _ZERO if bias is None else bias
        rsqrt = _ONE / np.sqrt(norm["running_var"] + np.float32(self._eps.get(name, 1e-5)))
        folded = (before - norm["running_mean"]) * rsqrt * norm["weight"] + norm["bias"]
        weight = weight * _along(norm["weight"] * rsqrt, weight)
        if not bool(np.isfinite(weight).all() and np.isfinite(folded).all()):
            raise ArtifactError(
                f"Folding the batch norm of layer {name!r} gives numbers that are not finite: its "
                "variance is below 0, or its numbers are too large for float32."
            )
        return weight, folded

    def _weight_range(
        self, name: str, weight: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the weight's range; convert lets an observer that is still on look once more."""
        prefix = f"{name}.weight_fake_quant"
        self._read.add(f"{prefix}.scale")
        low, high, eps = self._observed(prefix)
        per_channel = self._tensor(f"{prefix}.scale").size > 1
        if low.size not in ((weight.shape[0],) if per_channel else (1,)):
            raise ArtifactError(f"The weight observer of layer {name!r} has the wrong shape.")
        shape = (-1,) if per_channel else ()
        low, high = low.reshape(shape), high.reshape(shape)
        enabled = in_arrays(self._entries.get(f"{prefix}.observer_enabled"))
        if isinstance(enabled, np.ndarray) and enabled.size == 1 and not bool(enabled):
            return low, high, eps
        axes = tuple(range(1, weight.ndim)) if per_channel else None
        new_low, new_high = weight.min(axes), weight.max(axes)
        unseen = np.isinf(low) & np.isinf(high)
        low = np.where(unseen, new_low, low + _AVERAGING * (new_low - low))
        high = np.where(unseen, new_high, high + _AVERAGING * (new_high - high))
        return low, high, eps


def _along(channels: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Returns one number per output channel in a shape that goes with the weight's."""
    return channels.reshape(-1, *[1] * (weight.ndim - 1))


def _layer(key: str) -> str:
    """Returns the layer that an entry belongs to: what stands before its parts' names."""
    return re.split(r"\.(?:bn\.|weight_fake_quant|activation_post_process|[^.]*$)", key)[0]
