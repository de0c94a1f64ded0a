"""Runs compiled runtimes with every layer's integers as outputs beside the logits.

What `qzoo.compile` makes for `inductor` and `executorch` gives logits only. Here the same
compilation gets a graph whose rounded results are outputs too, so that layers can be compared.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qzoo._torch.threads import torch_threads
from qzoo.artifact.format import Artifact
from qzoo.export.torch_plan import TorchPlan
from qzoo.reference import ReferenceModel
from qzoo.reference.ops import QUANTIZE

Run = Callable[[Tensor], Sequence[Tensor]]
Recorder = Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]]


class StepsPlan(TorchPlan):
    """A plan whose graph returns the logits and each rounding's integers."""

    def graph(self, **options: Any) -> ReferenceModel:
        """Returns the reference model with all of its outputs."""
        reference = super().graph(**options)
        found = {n.meta["step"]: n for n in reference.graph.nodes if n.target is QUANTIZE}
        output = next(iter(reversed(reference.graph.nodes)))
        output.args = ((output.args[0], *(found[name] for name in self.steps())),)
        reference.recompile()
        return reference

    def steps(self) -> list[str]:
        """Returns the names of the roundings, in the order of the outputs."""
        nodes = super().graph().graph.nodes
        return [node.meta["step"] for node in nodes if node.target is QUANTIZE]


def recorder(
    artifact: Artifact, runtime: str, batch: int, side: int
) -> tuple[Recorder, tuple[str, ...]]:
    """Compiles a model for one thread.

    Args:
        artifact: The model.
        runtime: "inductor" or "executorch".
        batch: Pictures of each call.
        side: Their height and width, in pixels.

    Returns:
        What turns pictures, float32 [batch, 3, side, side], into logits and, for each step's name,
        its integers, uint8; and the layers that run in float.
    """
    plan = StepsPlan(artifact, (side, side), batch, False)
    run, float_layers = {"inductor": _inductor, "executorch": _executorch}[runtime](plan)
    names = plan.steps()

    def record(x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logits, *integers = run(x)
        return logits.clone(), {
            # XNNPACK has int8 activations: each integer less by 128.
            name: (value.int() + 128 * (value.dtype == torch.int8)).to(torch.uint8)
            for name, value in zip(names, integers, strict=True)
        }

    return record, float_layers


def _inductor(plan: TorchPlan) -> tuple[Run, tuple[str, ...]]:
    from torch._inductor.package import load_package

    from qzoo.export.aoti import compile_package

    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "model.pt2"
        float_layers = compile_package(plan, package, threads=1)
        model = load_package(str(package))

    def run(x: Tensor) -> Sequence[Tensor]:
        with torch_threads(1), torch.no_grad():
            outputs: Sequence[Tensor] = model(x)
            return outputs

    return run, float_layers


def _executorch(plan: TorchPlan) -> tuple[Run, tuple[str, ...]]:
    from executorch.runtime import Runtime

    from qzoo.export.executorch import lower

    file = lower(plan)
    program = Runtime.get().load_program(file)
    forward = program.load_method("forward")

    # A method does not keep its program, nor that its file, and would read freed memory.
    def run(x: Tensor, kept_alive: tuple[Any, ...] = (file, program)) -> Sequence[Tensor]:
        outputs: Sequence[Tensor] = forward.execute([x])
        return outputs

    return run, ()  # what it cannot execute on integers, it refuses
