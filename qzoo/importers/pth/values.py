"""What the reader of `torch.save` files hands out: plain arrays, numbers, containers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ..._core.given import as_array, is_tensor
from .elements import readable

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class QuantizedArray:
    """A quantized tensor taken apart into integers and parameters, arrays or tensors.

    The real value is `(values - zero_point) * scale`, with `scale` and `zero_point` laid along
    `axis` where there is one.

    Attributes:
        values: The stored integers with the tensor's own shape and strides: `int8` for `qint8`,
            `uint8` for `quint8`, `int32` for `qint32`. Not always contiguous (PyTorch stores many
            weights channels-last).
        scale: `float64`, positive and finite; 0-d (per tensor) or `[C]` (per channel).
        zero_point: `int64` within the range of `values`' dtype, of the same shape as `scale`.
        axis: The channel axis of a per-channel tensor, `None` for a per-tensor one.
    """

    values: Any
    scale: Any
    zero_point: Any
    axis: int | None


def in_arrays(value: Value) -> Value:
    """Returns an entry of a state dict with readable arrays in the place of tensors.

    They share the tensors' memory, but for types that numpy lacks (bfloat16, float8), which become
    float32, exactly.
    """
    if isinstance(value, tuple):
        return tuple(map(in_arrays, value))
    if isinstance(value, QuantizedArray):
        values, scale, zero_point = map(as_array, (value.values, value.scale, value.zero_point))
        return QuantizedArray(values, scale, zero_point, value.axis)
    if isinstance(value, np.ndarray):
        return readable(value)
    if not is_tensor(value):
        return value
    tensor: Any = value
    lacking = tensor.is_floating_point() and not hasattr(np, str(tensor.dtype).split(".")[-1])
    return as_array(tensor.float() if lacking else tensor)


# Dtypes, qschemes, layouts and devices come out as the text that names them ("torch.qint8",
# "torch.per_tensor_affine", "torch.strided", "cuda:0"); `argparse.Namespace` and defaultdicts as
# dicts, sets as lists; an object of other code as the name of its class ("<pathlib.PosixPath>").
Value: TypeAlias = (
    "np.ndarray | torch.Tensor | QuantizedArray | tuple[Value, ...] | list[Value]"
    " | dict[Any, Value] | str | int | float | bool | None"
)


@dataclass(frozen=True)
class Checkpoint:
    """One state dict out of a `torch.save` file.

    Attributes:
        entries: The state dict in its stored order. Its tensors are numpy arrays, or PyTorch's on
            the CPU, detached, of plain dtypes; the linear modules' `_packed_params` of version 3
            is a tuple `(QuantizedArray, bias or None)`.
        metadata: The state dict's `_metadata`: module path to `{"version": n}`; empty when absent.
        part: The key of the file's outer dict under which the state dict lay ("ema.module" for
            one in another), `None` when the file is the state dict itself.
        others: The outer dict's other keys (`optimizer`, `epoch`, ...), which were not read.
    """

    entries: dict[str, Value]
    metadata: dict[str, dict[str, Any]]
    part: str | None = None
    others: tuple[str, ...] = field(default=())

    def note(self, key: str) -> str | None:
        """Returns the JSON text that qzoo noted of the model, where it wrote the file.

        Args:
            key: What it stands under, a name that no module has.
        """
        text = self.metadata.get(key, {}).get("info")
        return text if isinstance(text, str) else None
