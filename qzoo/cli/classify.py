"""`qzoo classify` and `qzoo demo`: pictures in, class names out."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._core.option_types import Whole
from .._core.optional import install
from ..errors import ArgumentError, MissingDependencyError
from . import _options as opt
from ._command import argument, command, complete_files, option
from ._output import print_json, print_line, print_table, progress

if TYPE_CHECKING:
    from torch import nn

    from ..artifact.format import Artifact
    from ..published import PublishedWeights
    from ..runtimes.base import CompiledModel

DEMO_WEIGHTS = "ShuffleNet_V2_X0_5_QuantizedWeights.DIGITS_X86_V1"
_DIGITS = Path(__file__).parent.parent / "embedded" / "digits"


@dataclass(frozen=True)
class ClassifyOptions:
    """What `qzoo classify` takes."""

    images: tuple[str, ...] = argument(
        nargs=-1, required=True, metavar="IMAGE...", shell_complete=complete_files
    )
    model: str = opt.model_option(
        default="mobilenet_v2", help="Name of a model, or the file or folder of an int8 model."
    )
    weights: str | None = opt.weights()
    runtime: str | None = opt.runtime(
        help="What executes the model; auto measures which of the installed ones is the fastest.  "
        "[default: auto, and libqzoo, which starts at once, for fewer than 100 pictures]"
    )
    backend: str | None = opt.engine(
        help="Run on PyTorch, with this engine: fbgemm, x86, onednn or qnnpack."
    )
    topk: int = option("--topk", "-k", type=Whole(1), default=5, help="Guesses per picture.")
    as_json: bool = opt.as_json()


@command(ClassifyOptions)
def classify(options: ClassifyOptions) -> None:
    """Classify pictures with an int8 model.

    \b
    Examples:
      qzoo classify cat.jpg dog.png --model resnet50 --topk 3
      qzoo classify digit.png --model shufflenet_v2_x0_5 --weights DIGITS_X86_V1
      qzoo classify photo.jpg --model my_model.safetensors --json
    """
    if options.backend is not None and options.runtime not in (None, "torch"):
        raise ArgumentError("--backend chooses PyTorch's engine: leave it or --runtime out.")
    from ..classify import classify as classify_images
    from ..pictures.images import load_image

    images = options.images
    for name in images:
        if not Path(name).is_file():
            load_image(name)  # says what is wrong with it, before a model is fetched
    model = _runnable(options)
    bar = progress(images, desc="classify", unit="picture")
    results = classify_images(model, bar, options.topk)
    if options.as_json:
        print_json(
            [
                {"file": name, "predictions": [asdict(p) for p in guesses]}
                for name, guesses in zip(images, results, strict=True)
            ]
        )
        return
    rows = [
        (name, guess.name, f"{guess.probability:.1%}")
        for name, guesses in zip(images, results, strict=True)
        for guess in guesses
    ]
    print_table(None, ("picture", "class", "probability"), rows, "llr", grouped=True)


def _runnable(options: ClassifyOptions) -> CompiledModel | nn.Module:
    """Returns the model, ready to run where the options say."""
    from ._models import find_int8, load_model

    if options.backend is not None:
        return load_model(options.model, options.weights, options.backend)
    from ..runtimes.api import compile, runtime_for

    artifact = find_int8(options.model, options.weights)
    return compile(artifact, options.runtime or runtime_for(len(options.images)))


@dataclass(frozen=True)
class DemoOptions:
    """What `qzoo demo` takes."""

    as_json: bool = opt.as_json()


@command(DemoOptions)
def demo(options: DemoOptions) -> None:
    """Classify bundled pictures and measure speed, offline.

    The model comes with the package, too. It is measured here in int8 on each of the runtimes that
    are installed and quickly ready and, where PyTorch is installed, in float on PyTorch.

    \b
    Example:
      qzoo demo
    """
    from ..published import find_weights

    member = find_weights(DEMO_WEIGHTS)
    measured = _measure(member.artifact())
    pictures = _classified(measured.model)
    figures = _figures(member, measured)
    if options.as_json:
        print_json({"pictures": pictures, "models": figures, "runtimes": measured.int8})
        return
    rows = [
        (
            p["file"],
            p["label"],
            p["prediction"],
            f"{p['probability']:.1%}",
            "" if p["label"] == p["prediction"] else "wrong",
        )
        for p in pictures
    ]
    print_table(
        f"{member.architecture}, int8, trained on handwritten digits, on scans it has never seen",
        ("picture", "is", "predicted", "probability", ""),
        rows,
        "lllr",
    )
    print_line()
    cells = [
        (
            f["model"],
            f["runtime"],
            f"{f['file_kb']:.0f} kB",
            f"{f['top1']:.2f} %",
            *(f"{f[k]:.2f} ms" for k in _SIZES),
        )
        for f in figures
    ]
    print_table(
        "Measured now: file size and median latency, one picture, one thread",
        ("model", "runtime", "file", "top-1 (held-out)", *_SIZES.values()),
        cells,
        "llrrrr",
    )
    print_line()
    for sentence in _remarks(measured):
        print_line(sentence)


def _classified(model: CompiledModel | nn.Module) -> list[dict[str, Any]]:
    """Classifies the bundled digits, whose names say what they are."""
    from ..classify import classify as classify_images

    files = sorted(_DIGITS.glob("*.png"))
    results = [guesses[0] for guesses in classify_images(model, files, 1)]
    return [
        {
            "file": f.name,
            "label": f.name.split("-")[1],
            "prediction": p.name,
            "probability": p.probability,
        }
        for f, p in zip(files, results, strict=True)
    ]


#: What is measured, each with the height and width of its pictures in pixels.
_SIDES = {"latency_64_ms": 64, "latency_224_ms": 224}
_SIZES = {key: f"{side}x{side} pixels" for key, side in _SIDES.items()}
#: The runtimes that are worth installing for speed, and quickly ready.
_FAST = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class _Measured:
    """What the demo measures.

    Attributes:
        int8: Runtime to median latencies of int8 in ms, by the keys of `_SIDES`.
        float32: Those of float on PyTorch; None where that is not installed.
        float_bytes: Size of the float model's state dict in a file.
        no_float: Why there is no float.
        model: int8 on its fastest runtime.
    """

    int8: dict[str, dict[str, float]]
    float32: dict[str, float] | None
    float_bytes: int
    no_float: str
    model: CompiledModel | nn.Module

    @property
    def best(self) -> str:
        """The runtime that int8 is fastest on."""
        return min(self.int8, key=lambda name: sum(self.int8[name].values()))


def _measure(artifact: Artifact) -> _Measured:
    """Measures int8 on the runtimes that are quickly ready and, with PyTorch, float beside it."""
    from .._core.timing import interleave
    from ..runtimes.api import RUNTIMES, available_runtimes, compile
    from ..runtimes.measure import random_images

    names = [name for name in available_runtimes() if not RUNTIMES[name].slow]
    modules: dict[str, nn.Module] = {}
    float_bytes, no_float = 0, ""
    try:
        modules["float32"], float_bytes = _float_model(artifact)
    except MissingDependencyError as error:
        no_float = str(error)
    if "torch" in names:
        from ..native.model import to_native

        modules["torch"] = to_native(artifact)
    compiled = [name for name in names if name not in modules]
    ready: dict[str, CompiledModel | nn.Module] = {}
    found: dict[str, dict[str, float]] = {name: {} for name in [*modules, *compiled]}
    for key, side in _SIDES.items():
        images = random_images(1, (side, side))
        models = {name: compile(artifact, name, 1, 1, side) for name in compiled}
        ready = {**modules, **models, **ready}  # those for the first size stay
        calls = {name: functools.partial(model, images) for name, model in models.items()}
        with _one_thread_of_torch(modules, images) as more:
            timings = interleave({**more, **calls})
        for name, timing in timings.items():
            found[name][key] = timing.median_ms
    float32 = found.pop("float32", None)
    best = min(found, key=lambda name: sum(found[name].values()))
    return _Measured(found, float32, float_bytes, no_float, ready[best])


def _float_model(artifact: Artifact) -> tuple[nn.Module, int]:
    """Returns a float model of the artifact's shape, and how many bytes its file has.

    Raises:
        MissingDependencyError: PyTorch is not installed.
    """
    from .._core.optional import require_torch

    torch = require_torch("a float model to compare with")
    from ..registry import get_entry

    info = artifact.info
    with torch.random.fork_rng(devices=[]):
        model = get_entry(info.architecture).construct(**info.builder_kwargs).eval()
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return model, len(buffer.getvalue())


@contextlib.contextmanager
def _one_thread_of_torch(
    modules: Mapping[str, nn.Module], images: Any
) -> Iterator[dict[str, Callable[[], object]]]:
    """Gives calls of PyTorch's modules, which compute with one thread in the block."""
    if not modules:
        yield {}
        return
    import torch

    from .._torch.threads import torch_threads

    x = torch.from_numpy(images)
    with torch_threads(1), torch.inference_mode():
        yield {name: functools.partial(module, x) for name, module in modules.items()}


def _figures(member: PublishedWeights, measured: _Measured) -> list[dict[str, Any]]:
    """Returns the rows for float, where it was measured, and for int8 on its fastest runtime."""
    rows = []
    if measured.float32 is not None:
        rows.append(
            {
                "model": "float32",
                "runtime": "torch",
                "file_kb": measured.float_bytes / 1e3,
                "top1": _top1(member.float_metrics),
                **measured.float32,
            }
        )
    rows.append(
        {
            "model": "int8",
            "runtime": measured.best,
            "file_kb": member.file().stat().st_size / 1e3,
            "top1": _top1(member.metrics),
            **measured.int8[measured.best],
        }
    )
    return rows


def _top1(metrics: Mapping[str, Mapping[str, float]] | None) -> float:
    return next(iter((metrics or {}).values()))["acc@1"]


def _remarks(measured: _Measured) -> list[str]:
    """Returns what is to be said of the figures."""
    remarks = [_about_runtimes(measured.best, list(measured.int8))]
    if measured.float32 is None:
        remarks.append(f"There is no float row: {measured.no_float}")
        return remarks
    int8 = measured.int8[measured.best]
    slower = [size for key, size in _SIZES.items() if int8[key] > measured.float32[key]]
    if slower:
        remarks.append(f"int8 is slower than float at {' and '.join(slower)}: {_why_slower()}")
    return remarks


def _about_runtimes(used: str, measured: list[str]) -> str:
    """Returns the sentence on which runtime the demo used, and what could be faster."""
    missing = ",".join(name for name in _FAST if name not in measured)
    more = f". More to try: {install(missing)}" if missing else ""
    if measured != [used]:
        return f"int8 ran on {used}, the fastest here of {', '.join(measured)}{more}"
    if used in (*_FAST, "libqzoo"):
        return f"int8 ran on {used}, the only runtime that is installed here{more}"
    return (
        f"int8 ran on {used}, the only runtime that is installed here; its int8 kernels gain "
        f"little or nothing on a model this small. Faster ones: {install(missing)}"
    )


def _why_slower() -> str:
    from .._core.cpu import has_vnni

    if not has_vnni():
        return "this CPU lacks the instructions for int8 (VNNI) that make it fast."
    return (
        "in a model this small, starting each operation takes more time than computing; larger "
        "models gain (qzoo benchmark MODEL)."
    )
