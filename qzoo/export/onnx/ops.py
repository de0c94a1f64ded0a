"""Rounding, layers with weights and pointwise operations in ONNX, in the form that runtimes fuse.

Whatever computes new values stands between DequantizeLinear and QuantizeLinear.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...artifact.biases import widened
from ...artifact.graph import Node, make_table
from ...artifact.grid import Grid
from .values import Pixels, Value, Weight
from .writer import Writer, emits

# Into integers and out of them.


@emits("affine")
def _affine(w: Writer, node: Node, x: Value) -> Value:
    gain, offset = (np.array(node.attributes[key], np.float32) for key in ("gain", "offset"))
    if isinstance(x, Pixels):
        return Pixels(x.shape, x.real, gain=x.gain * gain, offset=x.offset * gain + offset)
    shape = (1, -1, 1, 1)
    scaled = w.op("Mul", w.real(x), w.constant(f"{node.name}.gain", gain.reshape(shape)))
    return Value(
        x.shape, w.op("Add", scaled, w.constant(f"{node.name}.offset", offset.reshape(shape)))
    )


@emits("quantize")
def _quantize(w: Writer, node: Node, x: Value) -> Value:
    return w.rounded(node, _normalized(w, node, x) if isinstance(x, Pixels) else w.real(x))


def _normalized(w: Writer, node: Node, x: Pixels) -> str:
    """Returns the name of the real numbers that pixels stand for.

    The transposition of the uint8 image costs next to nothing, because runtimes compute int8
    layers channels last and cancel it.
    """
    assert x.real is not None
    planes = w.op("Transpose", x.real, perm=[0, 3, 1, 2])
    name = f"{node.name}.pixel"
    gain, offset = x.gain.astype(np.float32), x.offset.astype(np.float32)
    if w.openvino:
        zeros = w.constant(f"{name}_zero", np.zeros(3, np.uint8))
        scaled = w.op("DequantizeLinear", planes, w.constant(f"{name}_gain", gain), zeros, axis=1)
        return w.op("Add", scaled, w.constant(f"{name}_offset", offset.reshape(1, 3, 1, 1)))
    # A 1x1 int8 convolution takes onnxruntime a third of the time of the float operations.
    kernel = (127 * np.eye(3)).astype(np.int8).reshape(3, 3, 1, 1)
    weight = Weight(f"{name}_gain", kernel, gain / 127, np.zeros(3, np.int8))
    pixels = Value(x.shape, integers=planes, grid=Grid(1.0, 0))
    return w.op(
        "Conv", *_operands(w, pixels, weight, f"{name}_offset", offset), kernel_shape=[1, 1]
    )


@emits("dequantize")
def _dequantize(_: Writer, __: Node, x: Value) -> Value:
    return x


# Layers with weights.


@emits("conv2d")
def _conv2d(w: Writer, node: Node, x: Value) -> Value:
    a = node.attributes
    name = w.op(
        "Conv",
        *_layer(w, node, x),
        layer=node.name,
        kernel_shape=w.tensors[f"{node.name}.weight"].shape[2:],
        strides=a["stride"],
        pads=a["padding"],
        dilations=a["dilation"],
        group=a["groups"],
    )
    return w.rounded(node, name)


@emits("linear")
def _linear(w: Writer, node: Node, x: Value) -> Value:
    return w.rounded(node, w.op("Gemm", *_layer(w, node, x), layer=node.name, transB=1))


def _layer(w: Writer, node: Node, x: Value) -> list[str]:
    """Writes down what a layer multiplies and adds: input, weight and, if any, bias."""
    key, bias = f"{node.name}.weight", w.tensors.get(f"{node.name}.bias")
    values = w.tensors[key]
    if node.float:
        own = [w.constant(key, values)]
        if bias is not None:
            own.append(w.constant(f"{node.name}.bias", bias))
        return [w.real(x) if w.openvino else w.real_by_channels(x), *own]
    scale = w.tensors[f"{key}_scale"].astype(np.float32)
    zero_point = w.tensors.get(f"{key}_zero_point")
    weight = Weight(
        key, values, scale, np.zeros(scale.shape, np.int8) if zero_point is None else zero_point
    )
    return _operands(w, x, weight, f"{node.name}.bias", bias)


def _operands(w: Writer, x: Value, weight: Weight, name: str, bias: np.ndarray | None) -> list[str]:
    """Writes down the operands of a layer on integers; `name` is that of the bias."""
    if bias is None:
        return [w.real(x), w.dequantized(weight)]
    assert x.grid is not None
    numbers = weight.values, weight.scale, weight.zero_point
    values, scale, zero_point = widened(*numbers, bias, x.grid.scale)
    assert zero_point is not None
    operands = [w.real(x), w.dequantized(Weight(weight.name, values, scale, zero_point))]
    if w.openvino:  # which keeps float biases, without the rounding
        return [*operands, w.constant(name, bias)]
    steps = np.broadcast_to(scale * np.float32(x.grid.scale), bias.shape)
    integers = np.rint(bias.astype(np.float64) / steps.astype(np.float64)).astype(np.int32)
    inputs = w.constant(name, integers), w.constant(f"{name}_scale", steps)
    return [*operands, w.op("DequantizeLinear", *inputs, name=f"{name}.real", axis=0)]


# Element by element.


@emits("add")
def _add(w: Writer, node: Node, x: Value, y: Value) -> Value:
    return w.rounded(node, w.op("Add", w.real(x), w.real(y)))


@emits("mul")
def _mul(w: Writer, node: Node, x: Value, y: Value) -> Value:
    return w.rounded(node, w.op("Mul", w.real(x), w.real(y)))


@emits("clip")
def _clip(w: Writer, node: Node, x: Value) -> Value:
    return x if w.within(node) else w.kept(node, w.integers(x))


@emits("table")
def _table(w: Writer, node: Node, x: Value) -> Value:
    function, table = node.attributes["function"], w.tensors[f"{node.name}.table"]
    assert x.grid is not None
    assert node.grid is not None
    if np.array_equal(table, make_table(function, x.grid, node.grid)):
        return w.rounded(node, _FUNCTIONS[function](w, w.real(x)))
    # Rounded in another way than here, so that nothing but the table itself gives its integers.
    places = w.op("Cast", w.integers(x), to=_INT32)
    integers = w.op("Gather", w.constant(f"{node.name}.table", table), places, axis=0)
    return w.cut(node, Value(x.shape, integers=integers, grid=w.grid(node)))


_INT32 = 6  # onnx.TensorProto.INT32


def _silu(w: Writer, x: str) -> str:
    return w.op("Mul", x, w.op("Sigmoid", x))


def _gelu(w: Writer, x: str) -> str:
    share = w.op("Erf", w.op("Mul", x, w.number(0.5**0.5)))
    half = w.op("Mul", x, w.number(0.5))
    return w.op("Mul", half, w.op("Add", share, w.number(1.0)))


def _hard_sigmoid(w: Writer, x: str) -> str:
    if not w.openvino:
        return w.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)
    # OpenVINO knows this form as its own operation and fuses it; ONNX's it computes by itself.
    raised = w.op("Add", x, w.number(3.0))
    clipped = w.op("Clip", raised, w.number(0.0), w.number(6.0))
    return w.op("Mul", clipped, w.number(1 / 6))


#: Functions of `table` nodes, on float tensors: runtimes fuse them with the layer before.
_FUNCTIONS: dict[str, Callable[[Writer, str], str]] = {
    "relu": lambda w, x: w.op("Relu", x),
    "relu6": lambda w, x: w.op("Clip", x, w.number(0.0), w.number(6.0)),
    "hard_sigmoid": _hard_sigmoid,
    "hard_swish": lambda w, x: w.op("HardSwish", x),
    "sigmoid": lambda w, x: w.op("Sigmoid", x),
    "silu": _silu,
    "tanh": lambda w, x: w.op("Tanh", x),
    "gelu": _gelu,
}
