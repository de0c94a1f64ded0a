"""`qzoo classify` and `qzoo demo`: pictures in, class names out."""

from __future__ import annotations

import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

from ..artifact.native import model_info
from ..benchmark import interleave, torch_threads
from ..classify import classify as classify_images
from ..images import load_image
from ..registry import get_entry, get_model, get_weight
from ._models import load_model
from ._output import print_json, print_line, print_table

DEMO_WEIGHTS = "ShuffleNet_V2_X0_5_QuantizedWeights.DIGITS_X86_V1"
_DIGITS = Path(__file__).parent.parent / "embedded" / "digits"


@click.command()
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "--model",
    "-m",
    default="mobilenet_v2",
    show_default=True,
    help="Model name, or an artifact file.",
)
@click.option("--weights", "-w", help="Name of the int8 weights.  [default: DEFAULT]")
@click.option("--backend", help="Run on this backend's engine.  [default: the weights' own]")
@click.option(
    "--topk",
    "-k",
    default=5,
    show_default=True,
    type=click.IntRange(1),
    help="Guesses per picture.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def classify(
    images: tuple[str, ...],
    model: str,
    weights: str | None,
    backend: str | None,
    topk: int,
    as_json: bool,
) -> None:
    """Classify pictures with an int8 model.

    \b
    Examples:
      qzoo classify cat.jpg dog.png --model resnet50 --topk 3
      qzoo classify digit.png --model shufflenet_v2_x0_5 --weights DIGITS_X86_V1
      qzoo classify photo.jpg --model my_model.safetensors --json
    """
    for name in images:
        if not Path(name).is_file():
            load_image(name)  # says what is wrong with it, before a model is fetched
    results = classify_images(load_model(model, weights, backend), images, topk)
    if as_json:
        print_json(
            [
                {"file": name, "predictions": [asdict(p) for p in guesses]}
                for name, guesses in zip(images, results, strict=True)
            ]
        )
        return
    rows = [
        (name if rank == 0 else "", guess.name, f"{guess.probability:.1%}")
        for name, guesses in zip(images, results, strict=True)
        for rank, guess in enumerate(guesses)
    ]
    print_table(None, ("picture", "class", "probability"), rows, "llr")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def demo(as_json: bool) -> None:
    """Classify bundled pictures with a bundled int8 model; needs no network.

    Then the same model in float and in int8 is measured here, side by side.

    \b
    Example:
      qzoo demo
    """
    member: Any = get_weight(DEMO_WEIGHTS)
    architecture = member.meta["architecture"]
    model = get_model(architecture, weights=member, quantize=True)
    files = sorted(_DIGITS.glob("*.png"))
    results = [guesses[0] for guesses in classify_images(model, files, 1)]
    pictures = [
        {
            "file": f.name,
            "label": f.name.split("-")[1],
            "prediction": p.name,
            "probability": p.probability,
        }
        for f, p in zip(files, results, strict=True)
    ]
    figures = _compare(model, member)
    if as_json:
        print_json({"pictures": pictures, "models": figures})
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
            f"{f['file_kb']:.0f} kB",
            f"{f['top1']:.2f} %",
            *(f"{f[k]:.2f} ms" for k in _SIZES),
        )
        for f in figures
    ]
    print_table(
        "Measured now: file size and median latency, one picture, one thread",
        ("model", "file", "top-1 (held-out)", *_SIZES.values()),
        cells,
        "lrrrr",
    )


_SIZES = {"latency_64_ms": "64x64 pixels", "latency_224_ms": "224x224 pixels"}


def _compare(int8: nn.Module, member: Any) -> list[dict[str, Any]]:
    """Measures the int8 model beside a float one of the same shape."""
    info = model_info(int8)
    with torch.random.fork_rng():
        float_model = get_entry(info.architecture).construct(**info.builder_kwargs).eval()
    buffer = io.BytesIO()
    torch.save(float_model.state_dict(), buffer)
    figures: list[dict[str, Any]] = [
        {
            "model": "float32",
            "file_kb": len(buffer.getvalue()) / 1e3,
            "top1": _top1(member, "float_metrics"),
        },
        {
            "model": "int8",
            "file_kb": member.file().stat().st_size / 1e3,
            "top1": _top1(member, "_metrics"),
        },
    ]
    generator = torch.Generator().manual_seed(0)
    with torch_threads(1), torch.inference_mode():
        for key in _SIZES:
            side = int(key.split("_")[1])
            x = torch.randn(1, 3, side, side, generator=generator)
            timings = interleave({"float32": lambda: float_model(x), "int8": lambda: int8(x)})  # noqa: B023
            for row in figures:
                row[key] = timings[row["model"]].median_ms
    return figures


def _top1(member: Any, key: str) -> float:
    return next(iter(member.meta[key].values()))["acc@1"]
