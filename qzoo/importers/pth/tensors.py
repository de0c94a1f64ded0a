"""Turns the reader's inert references into plain numbers, once every one has been checked."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

from ..._core.files import File, Span
from .allowed import never_run
from .elements import ArrayMaker, TensorMaker, is_real, stored_dtype
from .inert import (
    MAX_DEPTH,
    MAX_DIMENSIONS,
    MAX_INSTRUCTIONS,
    MAX_QPARAMS,
    MAX_TENSORS,
    Foreign,
    Namespace,
    OddKey,
    RefusedError,
    StorageRef,
    TensorRef,
    shown,
)
from .values import QuantizedArray, Value


class Converter:
    """Converts what the unpickler read; reads each storage when the first tensor needs it.

    An object that occurs several times is converted once, so that tied weights stay tied and a
    small pickle cannot be expanded into a large structure.
    """

    def __init__(self, file: File, spans: dict[str, Span], make: ArrayMaker | TensorMaker) -> None:
        self._file = file
        self._spans = spans
        self._make = make
        self._storages: dict[str, Any] = {}
        self._done: dict[int, tuple[Value, int]] = {}
        self._open: set[int] = set()
        self._tensors = 0
        self._qparams = 0

    def convert(self, value: object) -> Value:
        """The plain counterpart of `value`.

        Raises:
            RefusedError: A tensor reaches outside its storage, quantization parameters are out
                of range, or the structure is too deep, too large or contains itself.
        """
        return self._convert(value)[0]

    def _convert(self, value: object) -> tuple[Value, int]:
        """The converted value and how many values it would be if nothing were shared."""
        if value is None or isinstance(value, (bool, int, float, str)):
            return value, 1
        identity = id(value)  # stable: the unpickled object is alive until the end
        done = self._done.get(identity)
        if done is not None:
            return done
        if identity in self._open:
            raise RefusedError("is damaged: it holds a container that contains itself")
        if len(self._open) >= MAX_DEPTH:
            raise RefusedError(f"is damaged: it nests more than {MAX_DEPTH} containers")
        self._open.add(identity)
        done = self._converted(value)
        self._open.discard(identity)
        if done[1] > MAX_INSTRUCTIONS:
            raise RefusedError("is damaged: a small structure in it stands for an enormous one")
        self._done[identity] = done
        return done

    def _converted(self, value: object) -> tuple[Value, int]:
        if isinstance(value, TensorRef):
            return self._tensor(value), 1
        if isinstance(value, Namespace):
            return self._convert(value.fields or {})
        weight = 1
        if isinstance(value, dict):
            items: dict[Any, Value] = {}
            for key, item in value.items():
                known = f"<key {len(items)}>" if isinstance(key, OddKey) else key
                items[known], size = self._convert(item)
                weight += size
            return items, weight
        if isinstance(value, (list, tuple)):
            sequence: list[Value] = []
            for item in value:
                converted, size = self._convert(item)
                sequence.append(converted)
                weight += size
            return (tuple(sequence) if isinstance(value, tuple) else sequence), weight
        if isinstance(value, Foreign):
            # What PyTorch's own code would make is a tensor of a kind that is not read.
            if value.name.startswith("torch."):
                raise never_run(value.name)
            return f"<{shown(value.name)}>", weight
        if isinstance(value, StorageRef):
            raise RefusedError("holds a bare storage; save tensors instead")
        raise RefusedError("is damaged: it holds a type where a value belongs")

    def _tensor(self, ref: TensorRef) -> Value:
        self._tensors += 1 if ref.qparams is None else 3  # values, scale and zero point
        if self._tensors > MAX_TENSORS:
            raise RefusedError(f"is too large for a checkpoint: more than {MAX_TENSORS} tensors")
        kind = ref.storage.kind
        if kind.quantized != (ref.qparams is not None):
            raise RefusedError(
                f"is damaged: a tensor of {kind.name} elements is rebuilt as if it were "
                f"{'not ' if kind.quantized else ''}quantized"
            )
        itemsize = stored_dtype(ref.elements).itemsize
        offset, shape, stride = _geometry(ref, ref.storage.nbytes // itemsize)
        if ref.storage.nbytes % itemsize:
            raise RefusedError("is damaged: a storage ends in the middle of an element")
        values = self._make.view(self._storage(ref.storage), ref.elements, offset, shape, stride)
        return values if ref.qparams is None else self._quantized(values, ref)

    def _storage(self, ref: StorageRef) -> Any:
        storage = self._storages.get(ref.key)
        if storage is None:
            if sys.byteorder != "little":
                raise RefusedError("is little-endian, which qzoo cannot read on this machine")
            data = self._file.read_storage(self._spans[ref.key])
            # Any other byte in a truth value is undefined behaviour of the kernels that read it.
            if ref.kind.elements == "bool" and ref.count and int(data.max()) > 1:
                raise RefusedError("is damaged: a truth value is neither 0 nor 1")
            storage = self._storages[ref.key] = self._make.storage(data)
        return storage

    def _quantized(self, values: Any, ref: TensorRef) -> QuantizedArray:
        qparams = ref.qparams or ()
        scheme = qparams[0] if qparams else None
        axis: int | None = None
        if scheme == "torch.per_tensor_affine" and len(qparams) == 3:
            scale = self._numbers(qparams[1], "float64", None)
            zero_point = self._numbers(qparams[2], "int64", None)
        elif scheme == "torch.per_channel_affine" and len(qparams) == 4:
            axis = qparams[3]
            if type(axis) is not int or not 0 <= axis < values.ndim:
                raise RefusedError("is damaged: a quantized tensor has no such channel axis")
            scale = self._numbers(qparams[1], "float64", values.shape[axis])
            zero_point = self._numbers(qparams[2], "int64", values.shape[axis])
        else:
            name = shown(scheme) if isinstance(scheme, str) else "no scheme"
            raise RefusedError(
                f"holds a tensor quantized with {name}; qzoo reads per_tensor_affine and "
                "per_channel_affine"
            )
        if not bool(((scale > 0) & (scale < math.inf)).all()):
            raise RefusedError("is damaged: a quantization scale is not a positive number")
        limits = np.iinfo(ref.elements)
        if not bool(((zero_point >= limits.min) & (zero_point <= limits.max)).all()):
            raise RefusedError(f"is damaged: a zero point is out of the range of {ref.elements}")
        return QuantizedArray(values, scale, zero_point, axis)

    def _numbers(self, value: object, name: str, count: int | None) -> Any:
        """Scales or zero points of dtype `name`: 0-d where `count` is `None`, else `[count]`."""
        self._qparams += 1 if count is None else count
        if self._qparams > MAX_QPARAMS:
            raise RefusedError("is damaged: it has more quantization parameters than any model")
        if isinstance(value, TensorRef):
            made: Any = self._convert(value)[0]
            if (
                not isinstance(made, QuantizedArray)
                and tuple(made.shape) == (() if count is None else (count,))
                and is_real(value.elements) == is_real(name)
                and not value.elements.startswith("complex")
            ):
                return self._make.numbers(made, name)
        elif count is None:
            if _is_number(value, name):
                return self._make.numbers(value, name)
        # PyTorch 1.3 and 1.4 wrote the channels' parameters as lists.
        elif isinstance(value, (list, tuple)) and len(value) == count:
            if all(_is_number(item, name) for item in value):
                return self._make.numbers(value, name)
        raise RefusedError("is damaged: quantization parameters do not fit their tensor")


def _is_number(value: object, name: str) -> bool:
    if is_real(name):
        return type(value) is float
    return type(value) is int and -(1 << 63) <= value < 1 << 63


def _geometry(ref: TensorRef, available: int) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Offset, shape and strides in elements, if they stay within `available` elements."""
    shape, stride, offset = _sizes(ref.shape), _sizes(ref.stride), ref.offset
    if type(offset) is not int or not 0 <= offset < 1 << 62:
        raise RefusedError("is damaged: a tensor begins outside of its storage")
    if len(shape) != len(stride) or len(shape) > MAX_DIMENSIONS:
        raise RefusedError("is damaged: a tensor's shape and strides do not belong together")
    if math.prod(shape) > available:
        raise RefusedError("is damaged: a tensor has more elements than its storage")
    if 0 in shape:
        # Whatever the strides are, no element is reached; yet PyTorch multiplies all of them.
        if math.prod(size for size in shape if size) > 1 << 31:
            raise RefusedError("is damaged: an empty tensor has an enormous shape")
        return 0, shape, (1,) * len(shape)
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if last >= available:
        raise RefusedError("is damaged: a tensor reaches outside of its storage")
    return offset, shape, stride


def _sizes(value: object) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)) or len(value) > MAX_DIMENSIONS:
        raise RefusedError("is damaged: a tensor has no proper shape")
    if not all(type(item) is int and 0 <= item < 1 << 62 for item in value):
        raise RefusedError("is damaged: a tensor has a negative or an enormous size or stride")
    return tuple(value)
