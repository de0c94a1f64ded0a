"""The layers of an int8 artifact: what each quantized module does, and its plain tensors."""

from __future__ import annotations

import builtins
import dataclasses
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._core.given import as_array
from ..errors import ArtifactError
from .grid import Grid

#: Operations with an output range of their own; "functional" is an add, add_relu, mul or cat,
#: which one of them being decided by the architecture's forward.
RANGED_OPS = frozenset({"quantize", "conv2d", "linear", "functional", "hardswish"})
#: Operations without numbers.
BARE_OPS = frozenset({"dequantize", "dropout", "identity"})
#: Operations with weights, which may stay float.
WEIGHTED_OPS = frozenset({"conv2d", "linear"})
#: Scales of outputs and weights lie between these. With them every product and quotient that a
#: runtime forms of three scales is a normal float32 number, far from 0 and infinity.
SMALLEST_SCALE, LARGEST_SCALE = 2.0**-40, 2.0**40
#: The largest bias or float weight, by its absolute value.
LARGEST_VALUE = 2.0**40
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Layer:
    """One quantized module.

    Attributes:
        op: One of `RANGED_OPS` or `BARE_OPS`.
        scale: Step of the uint8 output; real value = scale * (integer - zero_point). Above 0.
        zero_point: The integer that stands for 0.0, in [0, 255].
        relu: Whether negative results are cut to 0 before the output is rounded.
        stride: Convolution stride (height, width), in pixels.
        padding: Zeros added on each side (height, width), in pixels.
        dilation: Distance of kernel taps (height, width), in pixels.
        groups: Number of independent channel groups.
        float: Whether a conv2d or linear keeps float32 weights and computes on the dequantized
            input. Its output is rounded to uint8 like that of any other layer.
    """

    op: str
    scale: builtins.float = 1.0
    zero_point: int = 0
    relu: bool = False
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1
    float: bool = False

    @property
    def grid(self) -> Grid:
        """The grid of the output."""
        return Grid(self.scale, self.zero_point)

    def on(self, grid: Grid) -> Layer:
        """Returns the layer with its output on another grid."""
        return dataclasses.replace(self, scale=grid.scale, zero_point=grid.zero_point)

    def to_json(self) -> dict[str, Any]:
        """Returns the layer as a JSON object, leaving out what does not apply to its op."""
        if self.op in BARE_OPS:
            return {"op": self.op}
        data: dict[str, Any] = {"op": self.op, "scale": self.scale, "zero_point": self.zero_point}
        if self.op in WEIGHTED_OPS:
            data["relu"] = self.relu
        if self.op == "conv2d":
            data |= {k: list(getattr(self, k)) for k in ("stride", "padding", "dilation")}
            data["groups"] = self.groups
        if self.float:
            data["float"] = True
        return data

    @classmethod
    def from_json(cls, name: str, data: Any) -> Layer:
        """Reads a layer from its JSON object.

        Raises:
            ArtifactError: A field is missing, unknown, of the wrong type or out of range.
        """
        op = data.get("op") if isinstance(data, dict) else data
        if not isinstance(data, dict) or op not in [*RANGED_OPS, *BARE_OPS]:
            raise ArtifactError(f"Layer {name!r} has an unknown operation {str(op)[:40]!r}.")
        fields = {f.name for f in dataclasses.fields(cls)}
        kept = data.get("float") is True and op in WEIGHTED_OPS
        wanted = cls(data["op"], float=kept).to_json().keys()
        if set(data) != set(wanted) or not set(data) <= fields:
            raise ArtifactError(
                f"Layer {name!r} should have exactly the fields {', '.join(sorted(wanted))}."
            )
        kwargs: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in data.items()
        }
        layer = cls(**kwargs)
        layer.check(name)
        return dataclasses.replace(layer, scale=float(layer.scale))

    def check(self, name: str) -> None:
        """Checks that every number of the layer called `name` is possible.

        Raises:
            ArtifactError: A number is not.
        """
        if not (_is_number(self.scale) and SMALLEST_SCALE <= self.scale <= LARGEST_SCALE):
            raise ArtifactError(
                f"Layer {name!r} has the impossible scale {str(self.scale)[:40]}: it must be a "
                f"number from {SMALLEST_SCALE:.2g} to {LARGEST_SCALE:.2g}."
            )
        if not (_is_int(self.zero_point) and 0 <= self.zero_point <= 255):
            raise ArtifactError(
                f"Layer {name!r} has the zero point {str(self.zero_point)[:40]}, outside 0 to 255."
            )
        pairs = (self.stride, self.padding, self.dilation)
        good = all(
            isinstance(p, tuple) and len(p) == 2 and all(_is_int(v) and 0 <= v < 2**15 for v in p)
            for p in pairs
        )
        if not (good and _is_int(self.groups) and self.groups > 0 and type(self.relu) is bool):
            raise ArtifactError(f"Layer {name!r} has an impossible convolution geometry.")
        if type(self.float) is not bool or (self.float and self.op not in WEIGHTED_OPS):
            raise ArtifactError(
                f"Layer {name!r} is a {self.op} marked as float; only conv2d and linear can be."
            )


def _is_int(value: object) -> bool:
    return type(value) is int


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def weighted_layers(layers: Mapping[str, Layer]) -> list[str]:
    """Returns the names of the layers with weights, convolutions and linear ones."""
    return [name for name, layer in layers.items() if layer.op in WEIGHTED_OPS]


def weight_tensors(
    name: str, values: Any, scale: Any, zero_point: Any, bias: Any | None
) -> dict[str, np.ndarray]:
    """Returns the artifact's numbers of one conv or linear layer; takes arrays or tensors.

    Args:
        name: The layer's name.
        values: int8 weight, output channels first.
        scale: float, 0-d (per tensor) or [C] (per channel).
        zero_point: Integers of the same shape as `scale`.
        bias: float32 [C], or None.

    Returns:
        `<name>.weight` int8, `<name>.weight_scale` float32 (float64 where float32 would lose
        bits), `<name>.weight_zero_point` int8 where any is not 0, `<name>.bias` float32. Scales
        below `SMALLEST_SCALE` are raised to it.
    """
    zeros = as_array(zero_point)
    values, scale = raised(as_array(values), as_array(scale), zeros)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused later
        narrow = np.asarray(scale.astype(np.float32))
        bias = None if bias is None else np.require(as_array(bias), np.float32, "C")
    exact = bool((narrow.astype(np.float64) == scale.astype(np.float64)).all())
    arrays = {
        f"{name}.weight": np.require(values, requirements="C"),
        f"{name}.weight_scale": narrow if exact else np.asarray(scale.astype(np.float64)),
    }
    if (zeros != 0).any():
        arrays[f"{name}.weight_zero_point"] = np.asarray(zeros.astype(np.int8))
    if bias is not None:
        arrays[f"{name}.bias"] = bias
    return arrays


def raised(
    values: np.ndarray,
    scale: np.ndarray,
    zero_point: np.ndarray | None,
    least: np.ndarray | float = SMALLEST_SCALE,
) -> tuple[np.ndarray, np.ndarray]:
    """Raises weight scales that are too small and rounds their integers anew.

    Such scales belong to channels of next to no weight, as batch norm leaves behind where training
    has switched a channel off. Runtimes divide biases by them, which gives infinities.

    Args:
        values: int8 weight, output channels first.
        scale: float, 0-d (per tensor) or [C] (per channel).
        zero_point: Integers of the same shape as `scale`, which stay; None where all are 0.
        least: The smallest scale that there may be, one for all or [C].

    Returns:
        Integers and scales, [C] if either `scale` or `least` is; those that were given where no
        scale is too small.
    """
    least = np.asarray(least, scale.dtype)
    if not (scale < least).any():
        return values, scale
    higher = np.asarray(np.maximum(scale, least))
    shape = (-1, *[1] * (values.ndim - 1)) if higher.ndim else ()
    shrink = (scale.astype(np.float64) / higher.astype(np.float64)).reshape(shape)
    zero: np.ndarray | float = 0.0
    if zero_point is not None:
        zero = np.broadcast_to(zero_point.astype(np.float64), higher.shape).reshape(shape)
    steps = (values.astype(np.float64) - zero) * shrink + zero
    # Where nothing was raised, the factor is 1 and the integers stay what they are.
    return np.rint(steps).clip(-128, 127).astype(np.int8), higher


def raise_small_scales(layers: Mapping[str, Layer], arrays: MutableMapping[str, Any]) -> None:
    """Replaces weight scales that earlier versions wrote too small, and their integers.

    Args:
        layers: Module name to layer.
        arrays: The artifact's numbers, checked; changed in place.
    """
    for name, layer in layers.items():
        scale = arrays.get(f"{name}.weight_scale")
        if layer.op in WEIGHTED_OPS and scale is not None:
            zero_point = arrays.get(f"{name}.weight_zero_point")
            old = arrays[f"{name}.weight"]
            values, higher = raised(old, scale, zero_point)
            if values is not old:
                arrays.update({f"{name}.weight": values, f"{name}.weight_scale": higher})


def float_weight_tensors(name: str, weight: Any, bias: Any | None) -> dict[str, np.ndarray]:
    """Returns the artifact's numbers of one layer that is kept in float.

    Args:
        name: The layer's name.
        weight: float32 weight, output channels first, batch norm folded in.
        bias: float32 [C], or None.

    Returns:
        Copies: `<name>.weight` and, if there is a bias, `<name>.bias`.
    """
    parts = {f"{name}.weight": weight, f"{name}.bias": bias}
    return {
        key: np.array(as_array(value), order="C")
        for key, value in parts.items()
        if value is not None
    }


def check_weight_shape(name: str, weight: Any, shape: tuple[int, ...]) -> None:
    """Checks that a checkpoint's weight of layer `name` is the one that its architecture has.

    Raises:
        ArtifactError: It has another shape.
    """
    if tuple(weight.shape) != shape:
        raise ArtifactError(shape_problem(name, tuple(weight.shape), shape))


def shape_problem(name: str, got: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """Returns the sentence on a weight that has another shape than the architecture's."""
    if len(got) == len(wanted) == 4 and wanted[1] == 3 and got == (wanted[0], got[1], *wanted[2:]):
        what = "One channel (gray) is" if got[1] == 1 else f"{got[1]} channels are"
        return (
            f"The first convolution {name!r} of the checkpoint takes pictures of {got[1]} "
            f"channel{'s' * (got[1] != 1)}. {what} not supported: qzoo's models take the 3 of RGB."
        )
    return (
        f"Layer {name!r} of the checkpoint has a weight of shape {got}, but this architecture has "
        f"{wanted} there: it is for another one, or for other builder arguments."
    )


def check_tensors(layers: Mapping[str, Layer], arrays: Mapping[str, np.ndarray]) -> None:
    """Checks that the tensors are exactly those that the layers call for, and possible.

    Raises:
        ArtifactError: A tensor is missing, superfluous, or has a wrong dtype, shape or value.
    """
    known = set()
    for name, layer in layers.items():
        layer.check(name)
        if layer.op not in WEIGHTED_OPS:
            continue
        weight = arrays.get(f"{name}.weight")
        if weight is None:
            raise ArtifactError(f"Layer {name!r} lacks its weight.")
        dtype = np.float32 if layer.float else np.int8
        if weight.dtype != dtype or weight.ndim != (4 if layer.op == "conv2d" else 2):
            raise ArtifactError(f"Layer {name!r} has a weight of the wrong dtype or shape.")
        if layer.op == "conv2d" and weight.shape[0] % layer.groups:
            raise ArtifactError(f"Layer {name!r} has channels that its groups do not divide.")
        known.add(f"{name}.weight")
        if layer.float:
            _check_float(name, weight, arrays)
        else:
            known |= _check_scales(name, weight, arrays)
        if (bias := arrays.get(f"{name}.bias")) is not None:
            _check_one(name, "bias", bias, (np.float32,), [(weight.shape[0],)])
            _check_values(name, "bias", bias)
            known.add(f"{name}.bias")
    if extra := sorted(set(arrays) - known):
        raise ArtifactError(f"Tensor {extra[0]!r} belongs to no layer of the artifact.")


def _check_float(name: str, weight: np.ndarray, arrays: Mapping[str, np.ndarray]) -> None:
    """Checks that a layer kept in float has possible weights, and no scales."""
    for what in ("weight_scale", "weight_zero_point"):
        if f"{name}.{what}" in arrays:
            raise ArtifactError(
                f"Layer {name!r} is kept in float, but has the tensor '{name}.{what}' of an int8 "
                "one: drop either."
            )
    _check_values(name, "float weight", weight)


def _check_values(name: str, what: str, array: np.ndarray) -> None:
    if not (np.abs(array) <= LARGEST_VALUE).all():  # which NaN is not either
        raise ArtifactError(
            f"Layer {name!r} has a {what} that is not finite or above {LARGEST_VALUE:.2g}."
        )


def _check_scales(name: str, weight: np.ndarray, arrays: Mapping[str, np.ndarray]) -> set[str]:
    """Checks what turns an int8 weight into real numbers; returns the names of the tensors."""
    scale = arrays.get(f"{name}.weight_scale")
    if scale is None:
        raise ArtifactError(f"Layer {name!r} lacks its weight scales.")
    shapes = [(), (weight.shape[0],)]
    _check_one(name, "weight scale", scale, (np.float32, np.float64), shapes)
    if not ((scale >= _TINY) & (scale <= LARGEST_SCALE)).all():
        raise ArtifactError(
            f"Layer {name!r} has weight scales that are not above 0, or above {LARGEST_SCALE:.2g}."
        )
    known = {f"{name}.weight_scale"}
    if (zero_point := arrays.get(f"{name}.weight_zero_point")) is not None:
        _check_one(name, "weight zero point", zero_point, (np.int8,), [tuple(scale.shape)])
        known.add(f"{name}.weight_zero_point")
    return known


def _check_one(
    name: str,
    what: str,
    array: np.ndarray,
    dtypes: tuple[type, ...],
    shapes: list[tuple[int, ...]],
) -> None:
    if array.dtype not in dtypes or array.shape not in shapes:
        raise ArtifactError(
            f"Layer {name!r} has a {what} of dtype {array.dtype} and shape "
            f"{array.shape}, which its weight does not call for."
        )
