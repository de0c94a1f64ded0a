"""Files of `torch.export`: the model as a graph of PyTorch operators, for tools built on it."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._core.files import write_atomically
from .._core.keywords import takes
from .._core.process import undisturbed
from ..artifact.given import Int8Model
from ..reference.ops import DEQUANTIZE, DEQUANTIZE_CHANNELS, QUANTIZE
from .plan import ExportKeywords, make_plan, open_export
from .torch_plan import TorchPlan

if TYPE_CHECKING:
    from typing_extensions import Unpack


@takes(make_plan)
def export_torch(
    model: Int8Model,
    path: str | os.PathLike[str],
    *,
    keep_quantize_ops: bool = False,
    **options: Unpack[ExportKeywords],
) -> None:
    """Writes a model as a `torch.export` program with int8 weights inside.

    `torch.export.load(path).module()` runs it, on CPU and CUDA, with nothing but PyTorch, in float
    arithmetic on exactly the int8 model's numbers. The extra file "qzoo.json" in it
    (`torch.export.load(path, extra_files={"qzoo.json": ""})`) holds classes, transforms and the
    expected input.

    Args:
        model: An int8 model in any form that `qzoo.as_artifact` takes.
        path: The file to write, whole or not at all; ends in ".pt2".
        keep_quantize_ops: Whether to keep the operators of `quantized_decomposed` whole, which
            compilers recognise int8 layers by; whoever loads the file must then import
            `torch.ao.quantization.fx._decomposed` first. Otherwise they are written out as
            ordinary arithmetic.
        **options: `batch_size`, `input_size` and `preprocess`, see `ExportKeywords`.

    Raises:
        ArgumentError: Arguments that the model does not allow.
        ArtifactError: The model is not an int8 model of the zoo, or the file cannot be written.
    """
    plan, target = open_export(model, path, ".pt2", options)
    torch_plan = TorchPlan.of(plan)
    program = torch_plan.export(torch_plan.graph())
    if not keep_quantize_ops:
        with torch.no_grad(), undisturbed():
            program = program.run_decompositions(_ARITHMETIC)
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={"qzoo.json": plan.metadata_json()})
    write_atomically(target, content.getvalue())


def _quantize(
    x: Tensor, scale: float, zero_point: int, low: int, high: int, dtype: torch.dtype
) -> Tensor:
    return (torch.round(x * (1.0 / scale)) + zero_point).clamp(low, high).to(dtype)


def _dequantize(
    x: Tensor, scale: float, zero_point: int, *_: Any, out_dtype: torch.dtype | None = None
) -> Tensor:
    return (x.to(torch.float32) - zero_point) * scale


def _dequantize_channels(
    x: Tensor,
    scales: Tensor,
    zero_points: Tensor,
    axis: int,
    *_: Any,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    shape = [-1 if d == axis else 1 for d in range(x.dim())]
    return (x.to(torch.float32) - zero_points.view(shape)) * scales.view(shape)


_ARITHMETIC: dict[Any, Callable[..., Any]] = {
    QUANTIZE: _quantize,
    DEQUANTIZE: _dequantize,
    DEQUANTIZE_CHANNELS: _dequantize_channels,
}
