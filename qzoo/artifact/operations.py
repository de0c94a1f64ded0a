"""The operations that an artifact's graph is made of: their attributes, checks and output shapes.

docs/artifact.md says what each of them computes; `qzoo.artifact.interpret` computes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ArtifactError
from .shapes import Size, may_be_same, window

Shape = tuple[Size, ...]

#: Of strides, paddings, windows and dilations, in pixels.
MAX_PIXELS = 2**15 - 1
MAX_GROUPS = 2**15


@dataclass(frozen=True)
class Operation:
    """One kind of node.

    Attributes:
        attributes: Attribute name to what checks its JSON value.
        shape: Gives the output's shape, of attributes, tensors and the inputs' shapes; it raises
            an ArtifactError, one sentence without the node's name, where they do not fit.
        inputs: Number of inputs; None for two or more.
        float_in: Whether the inputs are real numbers.
        float_out: Whether the output is; all others lie on the node's grid.
        keeps_grid: Whether scale and zero point of the output are those of the input.
        averages: Whether the output lies between values of the input.
        weighted: Whether the node has `weight` and perhaps `bias`.
    """

    attributes: Mapping[str, Callable[[Any], bool]]
    shape: Callable[[Mapping[str, Any], Mapping[str, np.ndarray], Sequence[Shape]], Shape]
    inputs: int | None = 1
    float_in: bool = False
    float_out: bool = False
    keeps_grid: bool = False
    averages: bool = False
    weighted: bool = False

    @property
    def within(self) -> bool:
        """Whether no value of the output lies outside of the input's."""
        return self.keeps_grid or self.averages


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _wholes(count: int, low: int, high: int) -> Callable[[Any], bool]:
    one = _whole(low, high)
    return lambda value: type(value) is list and len(value) == count and all(map(one, value))


def _flag(value: Any) -> bool:
    return type(value) is bool


def _numbers(value: Any) -> bool:
    return (
        type(value) is list
        and 0 < len(value) <= MAX_GROUPS
        and all(type(v) in (int, float) and abs(v) <= 2.0**40 for v in value)
    )


#: Real functions of one number that a `table` holds, in float64.
def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))


def _erf(x: np.ndarray) -> np.ndarray:
    from math import erf

    return np.array([erf(v) for v in x])


FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "hard_sigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
    "hard_swish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "sigmoid": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "tanh": np.tanh,
    "gelu": lambda x: x * 0.5 * (1 + _erf(x / np.sqrt(2))),
}


def _same_shape(_: Any, __: Any, shapes: Sequence[Shape]) -> Shape:
    return shapes[0]


def _image(shape: Shape) -> tuple[Size, Size, Size, Size]:
    if len(shape) != 4:
        raise ArtifactError(f"takes 4 dimensions, and its input has {len(shape)}")
    return shape[0], shape[1], shape[2], shape[3]


def _known(size: Size, what: str) -> int:
    if not isinstance(size, int):
        raise ArtifactError(f"needs a fixed number of {what}, which its input has not")
    return size


def _affine(attributes: Mapping[str, Any], _: Any, shapes: Sequence[Shape]) -> Shape:
    channels = _known(_image(shapes[0])[1], "channels")
    if not len(attributes["gain"]) == len(attributes["offset"]) == channels:
        raise ArtifactError(f"needs a gain and an offset for each of {channels} channels")
    return shapes[0]


def _conv2d(
    attributes: Mapping[str, Any], tensors: Mapping[str, np.ndarray], shapes: Sequence[Shape]
) -> Shape:
    batch, channels, height, width = _image(shapes[0])
    out, per_group, *kernel = tensors["weight"].shape
    groups = attributes["groups"]
    if out % groups or per_group * groups != _known(channels, "channels"):
        raise ArtifactError(
            f"has a weight of shape {tensors['weight'].shape} and {groups} groups, and its input "
            f"{channels} channels"
        )
    top, left, bottom, right = attributes["padding"]
    rest = zip(kernel, attributes["stride"], attributes["dilation"], strict=True)
    (kh, sh, dh), (kw, sw, dw) = rest
    return (
        batch,
        out,
        window(height, kh, sh, top, bottom, dh),
        window(width, kw, sw, left, right, dw),
    )


def _linear(_: Any, tensors: Mapping[str, np.ndarray], shapes: Sequence[Shape]) -> Shape:
    out, features = tensors["weight"].shape
    if len(shapes[0]) != 2 or shapes[0][1] != features:
        raise ArtifactError(f"takes {features} features, and its input has the shape {shapes[0]}")
    return shapes[0][0], out


def _pool(attributes: Mapping[str, Any], _: Any, shapes: Sequence[Shape]) -> Shape:
    batch, channels, *sizes = _image(shapes[0])
    kernel, padding = attributes["kernel"], attributes["padding"]
    if any(2 * p > k for k, p in zip(kernel, padding, strict=True)):
        raise ArtifactError("has a padding of more than half its window")
    dilation = attributes.get("dilation", [1, 1])
    values = zip(sizes, kernel, attributes["stride"], padding, dilation, strict=True)
    ceil = attributes["ceil_mode"]
    return (batch, channels, *(window(n, k, s, p, p, d, ceil) for n, k, s, p, d in values))


def _mean(attributes: Mapping[str, Any], _: Any, shapes: Sequence[Shape]) -> Shape:
    batch, channels, *_rest = _image(shapes[0])
    return (batch, channels, 1, 1) if attributes["keep_dimensions"] else (batch, channels)


def _broadcast(_: Any, __: Any, shapes: Sequence[Shape]) -> Shape:
    first, second = shapes
    if len(first) != len(second):
        raise ArtifactError(f"has inputs of {len(first)} and of {len(second)} dimensions")
    result = []
    for a, b in zip(first, second, strict=True):
        if not (may_be_same(a, b) or a == 1 or b == 1):
            raise ArtifactError(f"has inputs of shapes {first} and {second}, which do not fit")
        result.append(b if a == 1 or (isinstance(b, int) and b != 1) else a)
    return tuple(result)


def _concat(_: Any, __: Any, shapes: Sequence[Shape]) -> Shape:
    first, channels = shapes[0], 0
    for shape in shapes:
        others = zip(shape[2:], first[2:], strict=False)
        if len(shape) != len(first) or not all(may_be_same(a, b) for a, b in others):
            raise ArtifactError(f"joins inputs of shapes {first} and {shape}, which do not fit")
        channels += _known(shape[1], "channels")
    return (first[0], channels, *first[2:])


def _shuffle(attributes: Mapping[str, Any], _: Any, shapes: Sequence[Shape]) -> Shape:
    channels = _known(_image(shapes[0])[1], "channels")
    if channels % attributes["groups"]:
        raise ArtifactError(f"shuffles {channels} channels in {attributes['groups']} groups")
    return shapes[0]


def _slice(attributes: Mapping[str, Any], _: Any, shapes: Sequence[Shape]) -> Shape:
    start, stop, channels = (
        attributes["start"],
        attributes["stop"],
        _known(shapes[0][1], "channels"),
    )
    if not start < stop <= channels:
        raise ArtifactError(f"takes channels {start} to {stop} of {channels}")
    return (shapes[0][0], stop - start, *shapes[0][2:])


def _pad(attributes: Mapping[str, Any], _: Any, shapes: Sequence[Shape]) -> Shape:
    batch, channels, height, width = _image(shapes[0])
    top, left, bottom, right = attributes["padding"]
    return batch, channels, window(height, 1, 1, top, bottom), window(width, 1, 1, left, right)


def _flatten(_: Any, __: Any, shapes: Sequence[Shape]) -> Shape:
    features = 1
    for size in shapes[0][1:]:
        features *= _known(size, "pixels")
    return shapes[0][0], features


def _reshape(attributes: Mapping[str, Any], _: Any, shapes: Sequence[Shape]) -> Shape:
    batch, features = _flatten({}, {}, shapes)
    wanted = attributes["shape"]
    if np.prod(wanted, dtype=np.float64) != features:
        raise ArtifactError(f"makes {wanted} of {features} values")
    return (batch, *wanted)


_PAIR, _FOUR = _wholes(2, 0, MAX_PIXELS), _wholes(4, 0, MAX_PIXELS)
_STEPS = _wholes(2, 1, MAX_PIXELS)
_POOL = {"kernel": _STEPS, "stride": _STEPS, "padding": _PAIR}
_RELU = {"relu": _flag}

OPERATIONS: dict[str, Operation] = {
    "affine": Operation(
        {"gain": _numbers, "offset": _numbers}, _affine, float_in=True, float_out=True
    ),
    "quantize": Operation({}, _same_shape, float_in=True),
    "dequantize": Operation({}, _same_shape, float_out=True),
    "conv2d": Operation(
        {
            **_RELU,
            "stride": _STEPS,
            "padding": _FOUR,
            "dilation": _STEPS,
            "groups": _whole(1, MAX_GROUPS),
        },
        _conv2d,
        weighted=True,
    ),
    "linear": Operation(_RELU, _linear, weighted=True),
    "add": Operation(_RELU, _broadcast, inputs=2),
    "mul": Operation({}, _broadcast, inputs=2),
    "concat": Operation({}, _concat, inputs=None),
    "table": Operation({"function": lambda f: type(f) is str and f in FUNCTIONS}, _same_shape),
    "clip": Operation({}, _same_shape, keeps_grid=True),
    "max_pool2d": Operation(
        {**_POOL, "dilation": _STEPS, "ceil_mode": _flag}, _pool, keeps_grid=True
    ),
    "avg_pool2d": Operation(
        {**_POOL, "ceil_mode": _flag, "count_include_pad": _flag}, _pool, averages=True
    ),
    "mean": Operation({"keep_dimensions": _flag}, _mean, averages=True),
    "channel_shuffle": Operation({"groups": _whole(1, MAX_GROUPS)}, _shuffle, keeps_grid=True),
    "slice": Operation(
        {"start": _whole(0, 2**20), "stop": _whole(1, 2**20)}, _slice, keeps_grid=True
    ),
    "pad": Operation({"padding": _FOUR}, _pad, keeps_grid=True),
    "flatten": Operation({}, _flatten, keeps_grid=True),
    "reshape": Operation(
        {
            "shape": lambda s: (
                type(s) is list
                and 1 <= len(s) <= 3
                and all(type(n) is int and 1 <= n <= 2**20 for n in s)
            )
        },
        _reshape,
        keeps_grid=True,
    ),
}
