"""AOTInductor packages: the model compiled to machine code for CPUs like this machine's."""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .._core.compiler import check_compiler
from .._core.files import write_atomically
from .._core.keywords import takes
from .._core.process import undisturbed
from ..artifact.given import Int8Model
from ..errors import ArgumentError
from ._onednn import to_onednn
from .plan import ExportKeywords, ExportPlan, make_plan, open_export
from .torch_plan import TorchPlan

if TYPE_CHECKING:
    from typing_extensions import Unpack

# Inductor's settings, which a compilation patches, belong to the process.
_compiling = threading.Lock()


@takes(make_plan)
def export_aoti(
    model: Int8Model, path: str | os.PathLike[str], **options: Unpack[ExportKeywords]
) -> None:
    """Compiles a model with AOTInductor into a package that needs nothing but PyTorch.

    `torch._inductor.aoti_load_package(path)` gives a callable; its `get_metadata()["qzoo"]` is JSON
    with classes, transforms and the expected input. The package holds machine code and weights in
    oneDNN's order, so it runs on CPUs with the same instruction sets as the one that made it, and
    with the same PyTorch.

    Args:
        model: An int8 model in any form that `qzoo.as_artifact` takes.
        path: The file to write, whole or not at all; ends in ".pt2".
        **options: `batch_size`, `input_size` and `preprocess`, see `ExportKeywords`.

    Raises:
        ArgumentError: Arguments that the model does not allow.
        ArtifactError: The model is not an int8 model of the zoo, or the file cannot be written.
        MissingDependencyError: There is no C++ compiler.
    """
    plan, target = open_export(model, path, ".pt2", options)
    with tempfile.TemporaryDirectory(prefix="qzoo-") as folder:
        package = Path(folder) / "model.pt2"
        compile_package(plan, package)
        write_atomically(target, package.read_bytes())


def compile_package(plan: ExportPlan, package: Path, threads: int | None = None) -> tuple[str, ...]:
    """Compiles a plan into an AOTInductor package.

    Args:
        plan: What to compile.
        package: The file to write; ends in ".pt2".
        threads: Threads to compile for; None leaves the number to whoever runs it.

    Returns:
        Names of the layers that stayed in float.

    Raises:
        MissingDependencyError: There is no C++ compiler.
        ArgumentError: This PyTorch has no oneDNN, or Inductor fails.
    """
    if not torch.backends.mkldnn.is_available():
        raise ArgumentError(
            "This build of PyTorch has no oneDNN, whose int8 kernels Inductor calls: use the "
            "runtime 'torch' or 'onnxruntime' on this machine."
        )
    plan = TorchPlan.of(plan)
    with _compiling:
        # Imported here, because this takes a second that most users of qzoo never need.
        with undisturbed():
            from torch import _inductor as inductor

            check_compiler()
        module, float_layers = to_onednn(plan.graph(), plan.images(plan.batch_size or 1))
        settings: dict[str, Any] = {
            # Float weights are computed and brought into oneDNN's order once.
            "freezing": bool(float_layers or plan.artifact.float_layers),
            "aot_inductor.metadata": {"qzoo": plan.metadata_json(float_layers=list(float_layers))},
            "cpp.dynamic_threads": threads is None,
        }
        if threads is not None:
            settings["cpp.threads"] = threads
        try:
            with torch.no_grad(), undisturbed():
                program = plan.export(module)
                inductor.aoti_compile_and_package(
                    program, package_path=str(package), inductor_configs=settings
                )
        except Exception as error:  # whatever a compiler may raise
            raise ArgumentError(
                f"Inductor cannot compile {plan.artifact.info.name}: {str(error).strip()[:400]}"
            ) from error
    return float_layers
