"""Files of `torch.export`: the model as a graph of PyTorch operators, for tools built on it."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._core.files import write_atomically
from .._core.process import undisturbed
from ..artifact.format import Artifact
from ..reference.ops import DEQUANTIZE, DEQUANTIZE_CHANNELS, QUANTIZE
from .plan import make_plan, output_path


def export_torch(
    model: nn.Module | Artifact,
    path: str | os.PathLike[str],
    *,
    batch_size: int | None = None,
    input_size: int | Sequence[int] | None = None,
    preprocess: bool = False,
    keep_quantize_ops: bool = False,
) -> None:
    """Writes a model as a `torch.export` program with int8 weights inside.

    `torch.export.load(path).module()` runs it, on CPU and CUDA, with nothing but PyTorch, in float
    arithmetic on exactly the int8 model's numbers. The extra file "qzoo.json" in it
    (`torch.export.load(path, extra_files={"qzoo.json": ""})`) holds classes, transforms and the
    expected input.

    Args:
        model: A native int8 model, an artifact, or a reference model.
        path: The file to write, whole or not at all; ends in ".pt2".
        batch_size: The only batch size to take; None for any.
        input_size: Height and width of the pictures in pixels, or one number for both; None takes
            what the model was made for.
        preprocess: Whether the model takes uint8 [N, H, W, 3] pictures and normalizes them itself,
            instead of normalized float32 [N, 3, H, W].
        keep_quantize_ops: Whether to keep the operators of `quantized_decomposed` whole, which
            compilers recognise int8 layers by; whoever loads the file must then import
            `torch.ao.quantization.fx._decomposed` first. Otherwise they are written out as
            ordinary arithmetic.

    Raises:
        ArgumentError: Arguments that the model does not allow.
        ArtifactError: The model is not an int8 model of the zoo, or the file cannot be written.
    """
    target = output_path(path, ".pt2")
    plan = make_plan(model, batch_size, input_size, preprocess)
    program = plan.export(plan.graph())
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
    x: Tensor,
    scale: float,
    zero_point: int,
    low: int,
    high: int,
    dtype: torch.dtype,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    return (x.to(torch.float32) - zero_point) * scale


def _dequantize_channels(
    x: Tensor,
    scales: Tensor,
    zero_points: Tensor,
    axis: int,
    low: int,
    high: int,
    dtype: torch.dtype,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    shape = [-1 if d == axis else 1 for d in range(x.dim())]
    return (x.to(torch.float32) - zero_points.view(shape)) * scales.view(shape)


_ARITHMETIC: dict[Any, Callable[..., Any]] = {
    QUANTIZE: _quantize,
    DEQUANTIZE: _dequantize,
    DEQUANTIZE_CHANNELS: _dequantize_channels,
}
