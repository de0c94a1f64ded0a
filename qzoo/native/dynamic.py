"""What qzoo uses of PyTorch's dynamic quantization (`torch.ao.quantization.quantize_dynamic`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.ao.nn.quantized import dynamic as nnqd
from torch.ao.quantization import default_dynamic_qconfig, quantize_dynamic

from .eager import inside_torch_ao

#: What can run dynamically, exactly these types: subclasses may compute something else.
DYNAMIC_TYPES: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: nnqd.Linear,
    nn.LSTM: nnqd.LSTM,
    nn.GRU: nnqd.GRU,
    nn.LSTMCell: nnqd.LSTMCell,
    nn.GRUCell: nnqd.GRUCell,
    nn.RNNCell: nnqd.RNNCell,
}


def make_dynamic(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """Swaps layers for dynamically quantized ones, in place, packing for the current engine.

    Args:
        model: Holds float layers of `DYNAMIC_TYPES` under these names; "" is the model itself.
        names: Which ones.

    Returns:
        The model, or what has taken its place.
    """
    holder: Any = nn.ModuleDict({"model": model})
    spec = {f"model.{name}".rstrip("."): default_dynamic_qconfig for name in names}
    with inside_torch_ao():
        quantize_dynamic(holder, spec, inplace=True)
    swapped: nn.Module = holder["model"]
    return swapped
