"""`qzoo classify` and `qzoo demo`: pictures in, class names out."""

from __future__ import annotations

import functools
import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._core.option_types import Whole
from . import _options as opt
from ._command import argument, command, complete_files, option
from ._output import print_json, print_line, print_table, progress

if TYPE_CHECKING:
    from torch import nn

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
    backend: str | None = opt.engine()
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
    from ..classify import classify as classify_images
    from ..pictures.images import load_image
    from ._models import load_model

    images = options.images
    for name in images:
        if not Path(name).is_file():
            load_image(name)  # says what is wrong with it, before a model is fetched
    loaded = load_model(options.model, options.weights, options.backend)
    bar = progress(images, desc="classify", unit="picture")
    results = classify_images(loaded, bar, options.topk)
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


@dataclass(frozen=True)
class DemoOptions:
    """What `qzoo demo` takes."""

    as_json: bool = opt.as_json()


@command(DemoOptions)
def demo(options: DemoOptions) -> None:
    """Classify bundled pictures and measure speed, offline.

    The model comes with the package, too. It is measured here in float on PyTorch, and in int8 on
    the fastest of the runtimes that are installed.

    \b
    Example:
      qzoo demo
    """
    from ..registry import get_model, get_weight

    member: Any = get_weight(DEMO_WEIGHTS)
    architecture = member.meta["architecture"]
    model = get_model(architecture, weights=member, quantize=True)
    pictures = _classified(model)
    figures, runtimes = _compare(model, member)
    if options.as_json:
        print_json({"pictures": pictures, "models": figures, "runtimes": runtimes})
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
        f"{architecture}, int8, trained on handwritten digits, on scans it has never seen",
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
    print_line(_about_runtimes(figures[1]["runtime"], list(runtimes)))


def _classified(model: nn.Module) -> list[dict[str, Any]]:
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


_SIZES = {"latency_64_ms": "64x64 pixels", "latency_224_ms": "224x224 pixels"}
#: The runtimes that are worth installing for speed, and quickly ready.
_FAST = ("onnxruntime", "openvino")


def _compare(
    int8: nn.Module, member: Any
) -> tuple[list[dict[str, Any]], dict[str, dict[str, float]]]:
    """Measures the int8 model beside a float one of the same shape.

    Returns:
        A row for float on PyTorch and one for int8 on its fastest runtime; and the latencies of
        int8 on each runtime that is installed and quickly ready.
    """
    import torch

    from .._core.timing import interleave
    from .._torch.threads import torch_threads
    from ..native.model import model_info
    from ..registry import get_entry
    from ..runtimes.api import RUNTIMES, available_runtimes, compile
    from ..runtimes.measure import random_images

    info = model_info(int8)
    with torch.random.fork_rng(devices=[]):
        float_model = get_entry(info.architecture).construct(**info.builder_kwargs).eval()
    buffer = io.BytesIO()
    torch.save(float_model.state_dict(), buffer)
    names = [name for name in available_runtimes() if not RUNTIMES[name].slow]
    found: dict[str, dict[str, float]] = {name: {} for name in ["float32", *names]}
    with torch_threads(1), torch.inference_mode():
        for key in _SIZES:
            side = int(key.split("_")[1])
            x = torch.from_numpy(random_images(1, (side, side)))
            models: dict[str, Any] = {"float32": float_model, "torch": int8}
            models |= {n: compile(int8, n, 1, 1, side) for n in names if n != "torch"}
            calls = {name: functools.partial(model, x) for name, model in models.items()}
            for name, timing in interleave(calls).items():
                found[name][key] = timing.median_ms
    float_latencies = found.pop("float32")
    best = min(found, key=lambda name: sum(found[name].values()))
    sizes = {"float32": len(buffer.getvalue()), "int8": member.file().stat().st_size}
    return [
        {
            "model": model,
            "runtime": runtime,
            "file_kb": sizes[model] / 1e3,
            "top1": _top1(member, key),
            **latencies,
        }
        for model, runtime, key, latencies in (
            ("float32", "torch", "float_metrics", float_latencies),
            ("int8", best, "_metrics", found[best]),
        )
    ], found


def _about_runtimes(used: str, measured: list[str]) -> str:
    """Returns the sentence on which runtime the demo used, and what could be faster."""
    missing = ",".join(name for name in _FAST if name not in measured)
    if measured == [used]:
        return (
            f"int8 ran on {used}, the only runtime that is installed here; its int8 kernels gain "
            f'little or nothing on a model this small. Faster ones: pip install "qzoo[{missing}]"'
        )
    more = f'. More to try: pip install "qzoo[{missing}]"' if missing else ""
    return f"int8 ran on {used}, the fastest here of {', '.join(measured)}{more}"


def _top1(member: Any, key: str) -> float:
    return next(iter(member.meta[key].values()))["acc@1"]
