"""What exports made of PyTorch's graphs share: the reference model, and `torch.export`."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from .._core.process import undisturbed
from ..errors import ArgumentError
from ..reference import ReferenceModel, build_reference
from ..reference.run import Watched
from .plan import ExportPlan

aten = torch.ops.aten

#: Larger batches than this are refused by files that take any batch size; torch.export wants a
#: bound, and sizes beyond it would overflow 32-bit offsets.
MAX_BATCH = 4096


@dataclasses.dataclass(frozen=True)
class TorchPlan(ExportPlan):
    """A plan of which PyTorch's tools make the file."""

    @classmethod
    def of(cls, plan: ExportPlan) -> TorchPlan:
        """Returns the plan as one of this class."""
        if isinstance(plan, TorchPlan):
            return plan
        return cls(plan.artifact, plan.size, plan.batch_size, plan.preprocess)

    def graph(self, **options: Any) -> ReferenceModel:
        """Returns the reference model, with the preprocessing in front if asked for.

        Args:
            **options: Keywords of `build_reference`.
        """
        reference = build_reference(self.artifact, **options)
        if self.preprocess:
            _prepend_preprocessing(reference, self.normalization())
        return reference

    def images(self, batch: int | None = None) -> Tensor:
        """Returns blank images as the exported graph takes them.

        Args:
            batch: How many; None takes the fixed number, or 2 where any is allowed, because
                torch.export would take a single one for a constant.

        Raises:
            ArgumentError: More than torch.export's graphs take.
        """
        batch = batch or self.batch_size or 2
        if batch > MAX_BATCH:
            raise ArgumentError(f"batch_size may be at most {MAX_BATCH}, not {batch}.")
        if self.preprocess:
            return torch.zeros(batch, *self.size, 3, dtype=torch.uint8, device="cpu")
        return torch.zeros(batch, 3, *self.size, dtype=torch.float32, device="cpu")

    def export(self, module: nn.Module) -> Any:
        """Returns `torch.export`'s program of a module that takes `images`."""
        shapes = None
        if self.batch_size is None:
            shapes = ({0: torch.export.Dim("batch", min=1, max=MAX_BATCH)},)
        with torch.no_grad(), undisturbed():
            return torch.export.export(module, (self.images(),), dynamic_shapes=shapes)


def _prepend_preprocessing(
    reference: ReferenceModel, normalization: tuple[np.ndarray, np.ndarray]
) -> None:
    """Puts [N, H, W, 3] uint8 to normalized [N, 3, H, W] float32 in front of a graph, in place."""
    for name, values in zip(("pixel_gain", "pixel_offset"), normalization, strict=True):
        values32 = torch.from_numpy(values).float().reshape(1, 3, 1, 1)
        reference.register_buffer(name, values32, persistent=False)
    graph = reference.graph
    pixels = next(iter(graph.nodes))
    users = list(pixels.users)
    with graph.inserting_after(pixels):
        planes = graph.call_function(aten.permute.default, (pixels, [0, 3, 1, 2]))
    with graph.inserting_after(planes):
        real = graph.call_function(aten.to.dtype, (planes, torch.float32))
    with graph.inserting_after(real):
        gain = graph.get_attr("pixel_gain")
    with graph.inserting_after(gain):
        scaled = graph.call_function(aten.mul.Tensor, (real, gain))
    with graph.inserting_after(scaled):
        offset = graph.get_attr("pixel_offset")
    with graph.inserting_after(offset):
        x = graph.call_function(aten.add.Tensor, (scaled, offset))
    for node in (planes, real, gain, scaled, offset, x):
        node.meta["grid"] = None
    for user in users:
        user.replace_input_with(pixels, x)
    reference.recompile()


def layer_of(weight: Any) -> str:
    """Returns the name of the layer whose dequantized weight a node of a reference graph is."""
    return str(weight.args[0].target).removesuffix(".weight")


def node_shapes(reference: ReferenceModel, images: Tensor) -> dict[Any, list[int]]:
    """Returns the shape of every tensor in a graph, by node."""
    shapes: dict[Any, list[int]] = {}

    def watch(node: fx.Node, value: Any) -> None:
        if isinstance(value, Tensor):
            shapes[node] = list(value.shape)

    with torch.no_grad():
        Watched(reference, watch).run(images)
    return shapes
