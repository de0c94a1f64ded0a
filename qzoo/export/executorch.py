"""ExecuTorch programs: the model for phones and boards, on XNNPACK's int8 kernels."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

import torch

from .._core.files import write_atomically
from .._core.keywords import takes
from .._core.optional import require
from .._core.process import undisturbed
from ..artifact.biases import with_room_for_biases
from ..artifact.given import Int8Model
from ..errors import ArgumentError
from ._xnnpack import to_xnnpack
from .plan import ExportKeywords, ExportPlan, make_plan, open_export
from .torch_plan import TorchPlan

if TYPE_CHECKING:
    from typing_extensions import Unpack


@takes(make_plan)
def export_executorch(
    model: Int8Model, path: str | os.PathLike[str], **options: Unpack[ExportKeywords]
) -> None:
    """Writes a model as an ExecuTorch program (.pte) that XNNPACK executes as a whole.

    ExecuTorch plans its memory ahead, so the batch size is fixed. The program has two methods:
    `forward`, and `qzoo`, which returns JSON with classes, transforms and the expected input.

    Args:
        model: An int8 model in any form that `qzoo.as_artifact` takes.
        path: The file to write, whole or not at all; ends in ".pte".
        **options: `batch_size`, `input_size` and `preprocess`, see `ExportKeywords`.

    Raises:
        ArgumentError: Arguments that the model does not allow, or a layer that XNNPACK cannot
            execute on integers.
        ArtifactError: The model is not an int8 model of the zoo, or the file cannot be written.
        MissingDependencyError: ExecuTorch is not installed.
    """
    plan, target = open_export(model, path, ".pte", options)
    write_atomically(target, lower(dataclasses.replace(plan, batch_size=plan.batch_size or 1)))


def lower(plan: ExportPlan) -> bytes:
    """Returns the program of a plan with a fixed batch size, as the .pte file holds it.

    Raises:
        ArgumentError: XNNPACK cannot execute a layer on integers.
        MissingDependencyError: ExecuTorch is not installed.
    """
    purpose = "Export to ExecuTorch"
    exir = require("executorch.exir", "executorch", purpose)
    partitioner = require(
        "executorch.backends.xnnpack.partition.xnnpack_partitioner", "executorch", purpose
    )
    plan = TorchPlan.of(dataclasses.replace(plan, artifact=with_room_for_biases(plan.artifact)))
    reference = plan.graph(explicit=True, activations=torch.int8)
    program = plan.export(to_xnnpack(reference, plan.images()))
    with torch.no_grad(), undisturbed():
        edge = exir.to_edge_transform_and_lower(
            program,
            partitioner=[partitioner.XnnpackPartitioner()],
            compile_config=exir.EdgeCompileConfig(_check_ir_validity=False),
            constant_methods={"qzoo": plan.metadata_json()},
        )
        _check_delegated(edge.exported_program().graph_module)
        return bytes(edge.to_executorch().buffer)


def _check_delegated(lowered: Any) -> None:
    """Refuses a program whose layers XNNPACK does not execute.

    Raises:
        ArgumentError: A convolution or linear layer is left to ExecuTorch's portable kernels, which
            compute in float and take 20 times as long.
    """
    left = {
        node.name
        for node in lowered.graph.nodes
        if node.op == "call_function"
        and any(k in str(node.target) for k in ("aten.convolution", "aten.addmm", "aten.linear"))
    }
    if left:
        raise ArgumentError(
            f"ExecuTorch's XNNPACK backend leaves {len(left)} layers of this model in float "
            f"({', '.join(sorted(left))[:200]}): export it to another format."
        )
