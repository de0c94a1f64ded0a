"""torchao's PT2E flow: export, annotate and observe, convert."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..._core.process import undisturbed
from ...backends import Backend
from ...errors import ArgumentError, MissingDependencyError
from ...importers.pt2e_graph import dotted_names

_XNNPACK = "executorch.backends.xnnpack.quantizer.xnnpack_quantizer"


def prepare(
    model: nn.Module,
    images: Tensor,
    backend: Backend,
    quantizer: Any = None,
    keep_float: Collection[str] = (),
    is_qat: bool = False,
) -> fx.GraphModule:
    """Exports a float model, for batches of any size, and puts observers into it.

    Args:
        model: In eval mode, or in train mode for training; left as it was.
        images: An example of its input, float32 [N, 3, H, W].
        backend: The numeric configuration, which chooses the quantizer.
        quantizer: One of torchao's quantizers to use instead, set up.
        keep_float: Modules to leave in float.
        is_qat: Whether to put in fake quantization for training.

    Raises:
        ArgumentError: The model cannot be exported, or the quantizer is none or refuses it.
        MissingDependencyError: The backend's quantizer is not installed.
    """
    flow, base = _torchao()
    if quantizer is None:
        quantizer = default_quantizer(backend, keep_float, is_qat)
    elif not isinstance(quantizer, base):
        raise ArgumentError(
            f"quantizer should be one of torchao's PT2E quantizers, not {type(quantizer).__name__}."
        )
    elif keep_float:
        raise ArgumentError("Tell the quantizer itself what to leave in float, not keep_float.")
    # A batch of one would be taken for the only size there is.
    example = torch.cat([images, images])[:2]
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    try:
        with undisturbed(), torch.no_grad():
            exported = torch.export.export(model, (example,), dynamic_shapes=dynamic)
            put_in = flow.prepare_qat_pt2e if is_qat else flow.prepare_pt2e
            prepared: fx.GraphModule = put_in(exported.module(check_guards=False), quantizer)
    except Exception as error:  # exporting and annotating fail in many ways
        raise ArgumentError(
            f"PT2E cannot prepare this {type(model).__name__} "
            f'({" ".join(str(error).split())[:200]}): use flow="eager".'
        ) from error
    return prepared


def convert(prepared: fx.GraphModule) -> fx.GraphModule:
    """Turns a calibrated graph into a quantized one."""
    with undisturbed(), torch.no_grad():
        converted: fx.GraphModule = _torchao()[0].convert_pt2e(prepared)
    return converted


def default_quantizer(
    backend: Backend, keep_float: Collection[str] = (), is_qat: bool = False
) -> Any:
    """Returns the quantizer of a backend: X86Inductor's or, for qnnpack, XNNPACK's.

    Args:
        backend: The numeric configuration.
        keep_float: Modules to leave in float.
        is_qat: Whether it is for quantization-aware training.

    Raises:
        MissingDependencyError: torchao or ExecuTorch is not installed.
    """
    if backend.per_channel:
        with undisturbed():
            from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86
        config = x86.get_default_x86_inductor_quantization_config(
            is_qat=is_qat, reduce_range=backend.reduce_range
        )
        chosen = x86.X86InductorQuantizer().set_global(config)
        for name in keep_float:
            chosen.set_module_name_qconfig(name, None)
        return chosen
    if importlib.util.find_spec("executorch") is None:
        raise MissingDependencyError(
            f'flow="pt2e" for the backend {backend.name} takes the XNNPACKQuantizer of ExecuTorch: '
            'pip install "qzoo[executorch]", or choose another backend.'
        )
    with undisturbed():
        xnnpack = importlib.import_module(_XNNPACK)
    config = xnnpack.get_symmetric_quantization_config(
        is_per_channel=backend.per_channel, is_qat=is_qat
    )
    chosen = xnnpack.XNNPACKQuantizer().set_global(config)
    if keep_float:
        kept = frozenset(keep_float)
        chosen.set_filter_function(lambda node: kept.isdisjoint(dotted_names(node)))
    return chosen


def _torchao() -> tuple[Any, type]:
    """Returns torchao's module of the flow, and the base of its quantizers.

    Raises:
        MissingDependencyError: torchao is not installed.
    """
    if importlib.util.find_spec("torchao") is None:
        raise MissingDependencyError('flow="pt2e" needs torchao: pip install "qzoo[pt2e]".')
    with undisturbed():
        from torchao.quantization.pt2e import quantize_pt2e
        from torchao.quantization.pt2e.quantizer import Quantizer
    return quantize_pt2e, Quantizer
