"""`qzoo.compile`: one int8 model, made ready for any runtime."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType

from .._core.compiler import INSTALL_COMPILER, has_compiler
from .._core.optional import INSTALL_TORCH, install, torch_folders
from .._core.threads import usable_cores
from ..artifact.format import Artifact
from ..artifact.given import Int8Model, as_artifact
from ..errors import ArgumentError, MissingDependencyError, UnknownNameError, did_you_mean, warn
from ..libqzoo.binding import PLAIN, instructions, missing_library
from .base import CompiledModel, Setting
from .choice import Choice
from .measure import choose


@dataclass(frozen=True)
class Runtime:
    """One row of the table of runtimes.

    Attributes:
        module: Its file in this package, imported when it is first asked for.
        class_name: The `CompiledModel` in it.
        packages: What must be installed.
        extra: The extra of qzoo that installs them.
        needs_torch: Whether it stands on PyTorch.
        needs_torch_ao: Whether it needs PyTorch's own int8 modules.
        needs_compiler: Whether it needs a C++ compiler on the machine.
        slow: Whether making a model ready takes so long that `auto` leaves it out unless asked.
        needs_library: Whether it needs the C library that is built with the package.
    """

    module: str
    class_name: str
    packages: tuple[str, ...] = ()
    extra: str = ""
    needs_torch: bool = False
    needs_torch_ao: bool = False
    needs_compiler: bool = False
    slow: bool = False
    needs_library: bool = False

    def missing(self) -> str | None:
        """Returns what keeps it from running here and how to get that, or None."""
        if self.needs_torch and torch_folders() is None:
            return f"needs PyTorch, which is not installed here: {INSTALL_TORCH}"
        for package in self.packages:
            if importlib.util.find_spec(package) is None:
                return (
                    f"needs the package {package!r}, which is not installed: {install(self.extra)}"
                )
        if self.needs_torch_ao and not _has_torch_ao():
            return "needs torch.ao, which this PyTorch no longer has"
        if self.needs_library and (missing := missing_library()) is not None:
            return f"needs libqzoo, which {missing}"
        if self.needs_compiler and not has_compiler():
            return f"needs a C++ compiler: {INSTALL_COMPILER}"
        return None


@functools.cache
def _library_missing() -> bool:
    """Whether libqzoo cannot run here, which is said once: it comes with every installation."""
    if (missing := missing_library()) is None:
        return False
    warn(f"libqzoo {missing}. qzoo works without it, on other runtimes.", UserWarning)
    return True


def _has_torch_ao() -> bool:
    """Whether the installed PyTorch has `torch.ao`; asks what would import that, and nothing else.

    `importlib.util.find_spec("torch.ao")` would import PyTorch, which takes seconds.
    """
    folders = list(torch_folders() or ())
    finders = [finder for finder in sys.meta_path if hasattr(finder, "find_spec")]
    try:
        return any(finder.find_spec("torch.ao", folders) is not None for finder in finders)
    except ImportError:
        return False


RUNTIMES = MappingProxyType(
    {
        "libqzoo": Runtime("libqzoo", "LibqzooModel", needs_library=True),
        "torch": Runtime("torch_native", "TorchModel", needs_torch=True, needs_torch_ao=True),
        "onnxruntime": Runtime(
            "onnxruntime", "OnnxruntimeModel", ("onnx", "onnxruntime"), "onnxruntime"
        ),
        "openvino": Runtime("openvino", "OpenvinoModel", ("onnx", "openvino"), "openvino"),
        "inductor": Runtime(
            "inductor",
            "InductorModel",
            ("torchao",),
            "inductor",
            needs_torch=True,
            needs_compiler=True,
            slow=True,
        ),
        "executorch": Runtime(
            "executorch",
            "ExecutorchModel",
            ("executorch",),
            "executorch",
            needs_torch=True,
            slow=True,
        ),
    }
)


#: Fewer pictures than this are classified before the runtimes are measured.
FEW = 100


def runtime_for(pictures: int) -> str:
    """Returns the runtime for a number of pictures and nothing else: libqzoo, which starts at once.

    Choosing the fastest takes seconds, which only many pictures bring in again; for them, and where
    libqzoo has no fast kernels, it is "auto".
    """
    quick = not _library_missing() and instructions() != PLAIN
    return "libqzoo" if quick and pictures < FEW else "auto"


def available_runtimes() -> list[str]:
    """Returns the names of the runtimes whose packages and tools are installed here."""
    return [name for name, row in RUNTIMES.items() if row.missing() is None]


def compile(
    model: Int8Model,
    runtime: str = "auto",
    threads: int | None = None,
    batch_size: int | None = None,
    input_size: int | Sequence[int] | None = None,
    candidates: Sequence[str] | None = None,
) -> CompiledModel:
    """Makes an int8 model ready to run on a runtime.

    Args:
        model: An int8 model in any form that `qzoo.as_artifact` takes.
        runtime: "libqzoo", "torch", "onnxruntime", "openvino", "inductor", "executorch", or "auto":
            the fastest of `candidates` for this model, batch and number of threads. They are
            measured in a few seconds; the machine remembers the answer, and the result's `why`
            tells it. Where only one is installed, there is nothing to measure.
        threads: Threads to compute with; None leaves that to the runtime, mostly one per core.
        batch_size: The only number of images per call, which some runtimes are faster with; None
            takes any (and "auto" measures with one).
        input_size: Height and width of the images in pixels, or one number for both, that the
            model is made ready for; None takes what it was trained for. Other sizes run too, after
            a moment, except on "inductor" and "executorch".
        candidates: What "auto" chooses from; None takes all that are installed and quickly ready.
            That leaves out "inductor" and "executorch", which take up to minutes to compile a
            model: name them here to have them measured too.

    Returns:
        A callable: float32 images [N, 3, H, W] in, float32 logits [N, classes] out; it takes NumPy
        arrays and gives arrays, and takes CPU tensors and gives tensors. Threads may share it.

    Raises:
        UnknownNameError: There is no such runtime.
        MissingDependencyError: A package or tool that the runtime needs is not installed.
        ArtifactError: The model is not an int8 model of the zoo, or the file is no artifact.
        ArgumentError: Arguments that make no sense.
    """
    artifact = as_artifact(model)
    setting = Setting.of(artifact, threads, batch_size, input_size)
    if runtime != "auto":
        if candidates is not None:
            raise ArgumentError('candidates are what runtime="auto" chooses from: drop them.')
        return _build(runtime, artifact, setting)
    choice, ready = _choose(artifact, setting, candidates)
    compiled = ready or _build(choice.name, artifact, setting)
    compiled.why = choice
    return compiled


def _choose(
    artifact: Artifact, setting: Setting, candidates: Sequence[str] | None
) -> tuple[Choice, CompiledModel | None]:
    """Returns which runtime is the fastest, and the model on it where that was made already."""
    names, skipped = _candidates(candidates)
    if artifact.info.architecture is None and candidates is None and "torch" in names:
        names.remove("torch")
        skipped["torch"] = "has modules of the builders' models only"
    if not names:
        raise MissingDependencyError(
            "No installed runtime can run this model: pip install onnxruntime onnx"
        )
    if candidates is None and len(names) == 1:
        threads = setting.threads or usable_cores()
        batch = setting.batch_size or 1
        return Choice(names[0], (), batch, setting.size, threads, skipped), None

    def build(name: str) -> CompiledModel:
        return _build(name, artifact, setting)

    return choose("runtime", artifact, names, build, setting, skipped)


def _build(name: str, artifact: Artifact, setting: Setting) -> CompiledModel:
    row = _row(name)
    if (missing := row.missing()) is not None:
        raise MissingDependencyError(f"The runtime {name!r} {missing}.")
    return runtime_class(name)(artifact, setting.threads, setting.batch_size, setting.size)


def runtime_class(name: str) -> type[CompiledModel]:
    """Returns the class of the models that a runtime executes; imports what that stands on."""
    row = _row(name)
    module = importlib.import_module(f"{__package__}.{row.module}")
    made: type[CompiledModel] = getattr(module, row.class_name)
    return made


def _row(name: str) -> Runtime:
    if not isinstance(name, str) or name not in RUNTIMES:
        raise UnknownNameError(
            f"Unknown runtime {str(name)[:80]!r}: choose one of auto, {', '.join(RUNTIMES)}."
            + (did_you_mean(name, ["auto", *RUNTIMES]) if isinstance(name, str) else "")
        )
    return RUNTIMES[name]


def _candidates(wanted: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """Returns what to measure, and what not and why."""
    if wanted is not None:
        if isinstance(wanted, str) or not wanted:
            raise ArgumentError("candidates must be a list of runtimes with at least one in it.")
        for name in wanted:
            if (missing := _row(name).missing()) is not None:
                raise MissingDependencyError(f"The runtime {name!r} {missing}.")
        return list(dict.fromkeys(wanted)), {}
    names, skipped = [], {}
    for name, row in RUNTIMES.items():
        if (missing := row.missing()) is not None:
            skipped[name] = missing
            if row.needs_library:
                _library_missing()
        elif row.slow:
            skipped[name] = f"takes long to compile; ask for it with candidates=[..., {name!r}]"
        elif row.needs_library and instructions() == PLAIN:
            skipped[name] = "has no fast kernels for this processor yet"
        else:
            names.append(name)
    return names, skipped
