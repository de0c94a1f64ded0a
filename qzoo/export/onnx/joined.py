"""Joins an ONNX model and its weights, each of which is copied once.

onnx's own way copies every weight into a message, the messages into others, and all of them into
the file, which for resnet50 takes longer than ONNX Runtime then takes to read it. The form is at
https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper


def joined(model: onnx.ModelProto, constants: Mapping[str, np.ndarray]) -> bytes:
    """Returns a serialized model.

    Args:
        model: A model without constants.
        constants: Its graph's initializers, by name.
    """
    graph = model.graph.SerializeToString(deterministic=True)
    parts: list[bytes | memoryview] = [graph]
    for name, array in constants.items():
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        about = onnx.TensorProto(name=name, dims=array.shape, data_type=kind)
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        data = little.reshape(-1).view(np.uint8).data
        head = about.SerializeToString(deterministic=True)
        head += _start(onnx.TensorProto, "raw_data", len(data))
        parts += [_start(onnx.GraphProto, "initializer", len(head) + len(data)), head, data]
    rest = onnx.ModelProto()
    rest.CopyFrom(model)
    rest.ClearField("graph")
    size = sum(map(len, parts))
    start = rest.SerializeToString(deterministic=True) + _start(onnx.ModelProto, "graph", size)
    return b"".join([start, *parts])


def _start(message: type, field: str, size: int) -> bytes:
    """Returns what stands before a field of so many bytes."""
    number = message.DESCRIPTOR.fields_by_name[field].number  # type: ignore[attr-defined]
    return _varint(number << 3 | 2) + _varint(size)  # 2: a length, and then the bytes


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    digits.append(value)
    return bytes(digits)
