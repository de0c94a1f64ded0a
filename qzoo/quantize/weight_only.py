"""Weight-only quantization of linear layers: int8 or int4 weights, float arithmetic.

The numbers and kernels are torchao's (https://github.com/pytorch/ao), through its `quantize_`.
int4 takes the layout of PyTorch's CPU kernel (`aten::_weight_int4pack_mm_for_cpu`), two weights a
byte; torchao's default int4 layouts need a GPU, and its `IntxWeightOnlyConfig` spends a whole byte
on each weight.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from .._core.process import undisturbed
from ..errors import ArgumentError, MissingDependencyError
from .layer_choice import LayerReport, choose_layers
from .mixed.damage import decibels

#: Weights that share a scale; int8 also offers one scale per output channel.
GROUP_SIZES = (32, 64, 128)
#: The int4 kernel computes so many output channels at a time; others are padded to that.
_ROWS = 16
#: How many columns of a weight are read back at a time.
_PROBES = 256


@dataclass(frozen=True)
class QuantizedWeight:
    """A linear layer whose weight was quantized.

    Attributes:
        name: Its place in the model; "" is the model itself.
        shape: Output and input channels.
        bytes_before: Size of the weight before.
        bytes_after: Size of integers, scales and zero points, padding included.
        sqnr_db: Ratio of the weight's to the error's energy in decibels; infinite without error.
        max_error: Largest difference of a weight.
        padded_rows: Output channels that the kernel's layout adds.
    """

    name: str
    shape: tuple[int, int]
    bytes_before: int
    bytes_after: int
    sqnr_db: float
    max_error: float
    padded_rows: int = 0


@dataclass(frozen=True, kw_only=True)
class WeightOnlyReport(LayerReport):
    """What `quantize_weight_only` did, and what it costs.

    Attributes:
        bits: 8 or 4.
        group_size: Weights that share a scale; None for one scale per output channel.
        kernel: What computes with these weights.
        sqnr_db: Ratio of all quantized weights' to all errors' energy in decibels.
    """

    bits: int
    group_size: int | None
    kernel: str
    layers: tuple[QuantizedWeight, ...]
    sqnr_db: float

    @property
    def max_error(self) -> float:
        """Largest difference of a weight."""
        return max(layer.max_error for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as JSON values; an infinite ratio becomes None."""
        layers = [asdict(layer) for layer in self.layers]
        return {
            "bits": self.bits,
            "group_size": self.group_size,
            "kernel": self.kernel,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "sqnr_db": _finite(self.sqnr_db),
            "max_error": self.max_error,
            "layers": [{**layer, "sqnr_db": _finite(layer["sqnr_db"])} for layer in layers],
            "skipped": dict(self.skipped),
        }

    def __str__(self) -> str:
        """Lists the layers, one a line, and the total."""
        rows: list[QuantizedWeight | WeightOnlyReport] = [*self.layers, self]
        names = [*(layer.name or "(the model)" for layer in self.layers), "total"]
        width = max(map(len, names))
        lines = [
            f"{name:{width}} {row.bytes_before / 1024:10.1f} to {row.bytes_after / 1024:9.1f} KiB, "
            f"{row.sqnr_db:6.2f} dB, largest error {row.max_error:.2g}"
            for name, row in zip(names, rows, strict=True)
        ]
        return "\n".join([*lines, *self.stays_float()])


def quantize_weight_only(
    model: nn.Module,
    bits: int = 8,
    *,
    group_size: int | None = None,
    layers: str | Sequence[str] | None = None,
    progress: bool = True,
) -> tuple[nn.Module, WeightOnlyReport]:
    """Quantizes the weights of linear layers and leaves all arithmetic in float.

    Args:
        model: Any model whose linear layers are on the CPU; left as it was.
        bits: 8 (symmetric) or 4 (with a zero point per group).
        group_size: How many neighbouring weights of an output channel share a scale: 32, 64 or
            128. None takes one scale per output channel for 8 bits, and 128 for 4.
        layers: Names or shell patterns ("encoder.*") of the layers to quantize; None takes every
            `nn.Linear` that the group size divides.
        progress: Whether to show a progress bar on stderr.

    Returns:
        A copy of the model in eval mode, and sizes and errors of each layer. The errors are those
        of the weights that the kernels compute with, found by running them.

    Raises:
        ArgumentError: Nothing to quantize, a pattern that matches nothing, a layer that was asked
            for and does not fit, or another number of bits or group size.
        MissingDependencyError: torchao is not installed, or has no int4 for CPUs.
    """
    if bits not in (4, 8):
        raise ArgumentError(f"bits should be 8 or 4, not {bits!r}.")
    if group_size is None and bits == 4:
        group_size = 128
    if group_size is not None and group_size not in GROUP_SIZES:
        raise ArgumentError(
            f"group_size should be one of {', '.join(map(str, GROUP_SIZES))}, not {group_size!r}."
        )
    with undisturbed():
        config, kernel = _config(bits, group_size)
    found: dict[str, Any] = {n: m for n, m in model.named_modules() if type(m) is nn.Linear}
    names, skipped = choose_layers(
        model, found, layers, lambda layer: _obstacle(layer.weight, group_size), "linear"
    )
    twin = copy.deepcopy(model).eval().requires_grad_(False)
    done, energies = [], []
    for name in tqdm(names, "quantize", unit="layer", leave=False, disable=not progress):
        layer: Any = twin.get_submodule(name)
        before = layer.weight.detach().clone()
        with undisturbed():
            padded = _quantize(layer, config, bits)
            weight, energy = _measured(name, before, layer.weight, padded)
        done.append(weight)
        energies.append(energy)
    report = WeightOnlyReport(
        bits=bits, group_size=group_size, kernel=kernel, layers=tuple(done), skipped=skipped,
        sqnr_db=decibels(*map(sum, zip(*energies, strict=True))),
    )  # fmt: skip
    return twin, report


def _measured(
    name: str, before: Tensor, after: Tensor, padded: int
) -> tuple[QuantizedWeight, tuple[float, float]]:
    """Returns what a layer's weight became, and the energies of the weight and of its error."""
    error = (_computed_with(after) - before).double()
    signal, noise = (float(x.square().sum()) for x in (before.double(), error))
    sizes = (before.nbytes, _stored_bytes(after))
    shape, largest = (before.shape[0], before.shape[1]), float(error.abs().max())
    weight = QuantizedWeight(name, shape, *sizes, decibels(signal, noise), largest, padded)
    return weight, (signal, noise)


def _config(bits: int, group_size: int | None) -> tuple[Any, str]:
    """Returns torchao's configuration, which leaves Inductor's settings alone, and its kernel."""
    try:
        from torchao.quantization import Int8WeightOnlyConfig, PerGroup, PerRow
    except ImportError:
        raise MissingDependencyError(
            'Weight-only quantization needs torchao: pip install "qzoo[pt2e]".'
        ) from None
    if bits == 8:
        granularity = PerRow() if group_size is None else PerGroup(group_size)
        config = Int8WeightOnlyConfig(granularity=granularity, set_inductor_config=False)
        return config, "torchao's Int8Tensor (float matrix product of converted weights)"
    try:
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    except ImportError:
        raise MissingDependencyError(
            "This torchao has no int4 weights for CPUs, which are in 0.18 and later: "
            'pip install -U "torchao>=0.18".'
        ) from None
    config = PrototypeInt4WeightOnlyConfig(group_size=group_size, set_inductor_config=False)
    return config, "aten::_weight_int4pack_mm_for_cpu"


def _obstacle(weight: Tensor, group_size: int | None) -> str | None:
    if type(weight.data) is not Tensor or not weight.is_floating_point():
        return "its weight is quantized already"
    if weight.device.type != "cpu":
        return f"its weight is on {weight.device}; move the model to the CPU"
    if not bool(torch.isfinite(weight).all()):
        return "its weight is not finite"
    if group_size is not None and weight.shape[1] % group_size:
        return f"groups of {group_size} do not divide its {weight.shape[1]} input channels"
    return None


def _quantize(layer: nn.Linear, config: Any, bits: int) -> int:
    """Quantizes a layer's weight in place; returns how many rows were added to it."""
    from torchao.quantization import quantize_

    rows = layer.weight.shape[0]
    padding = -rows % _ROWS if bits == 4 else 0
    if padding:
        layer.weight = nn.Parameter(F.pad(layer.weight, (0, 0, 0, padding)), requires_grad=False)
    quantize_(layer, config, filter_fn=lambda module, _: module is layer)
    if padding:
        packed: Any = layer.weight.data
        shape = torch.Size((rows, packed.shape[1]))
        cut = type(packed)(packed.qdata, packed.scale_and_zero, packed.block_size, shape)
        layer.weight = nn.Parameter(cut, requires_grad=False)
    return padding


def _computed_with(weight: Tensor) -> Tensor:
    """Returns the weight that a quantized layer computes with, by giving it unit vectors."""
    columns = weight.shape[1]
    with torch.no_grad():
        parts = [
            F.linear(_unit_vectors(start, min(start + _PROBES, columns), columns, weight), weight)
            for start in range(0, columns, _PROBES)
        ]
    return torch.cat(parts).T


def _unit_vectors(start: int, stop: int, width: int, like: Tensor) -> Tensor:
    vectors = torch.zeros(stop - start, width, dtype=like.dtype, device=like.device)
    vectors[:, start:stop].fill_diagonal_(1)
    return vectors


def _stored_bytes(weight: Any) -> int:
    names = [*weight.tensor_data_names, *weight.optional_tensor_data_names]
    parts = [getattr(weight, name) for name in names]
    return sum(part.nbytes for part in parts if part is not None)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
