"""How far each runtime is from the reference model, layer by layer, for every builder.

    python benchmarks/agreement.py            # layers
    python benchmarks/agreement.py --digits   # answers

Each builder's float model (random weights, batch norms that have seen a batch) is quantized once
by `qzoo.quantize.ptq`; then 64 random and 64 real inputs (handwritten digits of scikit-learn,
enlarged) go through all realisations of the same artifact. Layers are compared one by one, each
given the same integers in both, so that differences do not add up. A difference is counted in steps
of the output's scale. With --digits the two models that come with the package answer all 445
held-out digits on every runtime. Needs the extra "all".

Both write benchmarks/results/agreement.csv, each row in place of an earlier one of the same
measurement; benchmarks/agreement_page.py makes the tables of docs/agreement.md of it.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from common import Row, environment
from pages import read_rows
from steps import recorder
from torch import Tensor, nn

import qzoo
import qzoo.quantize
from qzoo.artifact.format import Artifact
from qzoo.datasets.digits import Digits, digits_transforms
from qzoo.export.onnx.compare import compare_onnx_layers
from qzoo.metadata import read_metadata
from qzoo.native.model import from_native
from qzoo.reference import (
    LayerDifference,
    ReferenceModel,
    build_reference,
    differences,
    native_outputs,
    reference_outputs,
)
from qzoo.training.files import write_csv

Run = Callable[[Tensor], tuple[Tensor, list[LayerDifference]]]

COUNT = 64
BATCH = 16
#: Height and width of the pictures, where a builder takes so few pixels.
SIDE = 32
KEY = ("model", "runtime", "inputs")
EMBEDDED = ("mobilenet_v3_small", "shufflenet_v2_x0_5")
RUNTIMES = ("torch", "onnxruntime", "openvino", "inductor", "executorch")
PACKAGES = ("qzoo", "torch", "torchvision", "onnxruntime", "openvino", "executorch")
#: What is measured, before the columns of the environment; what a row has not is left empty.
COLUMNS = (
    *KEY, "size", "images", "top1_equal", "logit_steps", "layers", "worst_layer_steps",
    "worst_layer", "worst_layer_differing", "float_layers", "accuracy", "differing", "margins",
)  # fmt: skip


def main() -> None:
    """Measures, and writes the CSV file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=lambda t: t.split(","), default=qzoo.list_models())
    parser.add_argument("--runtimes", type=lambda t: t.split(","), default=list(RUNTIMES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--digits", action="store_true", help="compare answers instead of layers")
    parser.add_argument("--size", type=int, default=SIDE, help="pixels, or what a builder needs")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "agreement.csv"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.digits:
        for name in [name for name in EMBEDDED if name in args.models]:
            for row in digits(name, args.runtimes):
                note(args.out, row)
                print(row, flush=True)
        return
    for name in args.models:
        side = max(args.size, *read_metadata(name)["min_size"])
        artifact = from_native(quantized(name, side))
        reference = build_reference(artifact)
        kinds = {"random": random_inputs(side), "real": real_inputs(side)}
        for runtime in args.runtimes:
            start = time.perf_counter()
            run, float_layers = realisation(artifact, reference, runtime, side)
            for inputs, x in kinds.items():
                row = {"model": name, "runtime": runtime, "inputs": inputs, "size": side}
                row |= compare(reference, run, x) | {"float_layers": len(float_layers)}
                note(args.out, row)
                print(row, f"{time.perf_counter() - start:.1f} s", flush=True)
            del run
            gc.collect()


def quantized(name: str, side: int) -> nn.Module:
    """Returns the builder's native int8 model for ten classes."""
    torch.manual_seed(0)
    extra = {"aux_logits": False, "init_weights": False} if name in AUX else {}
    model = qzoo.get_model(name, num_classes=10, **extra)
    x = torch.cat([real_inputs(side)[:16], random_inputs(side)[:16]])
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0  # as after training: signals neither fade nor grow
        model.train()(x)
    return qzoo.quantize.ptq(model.eval(), x, recipe="fast", progress=False)


AUX = ("googlenet", "inception_v3")


def random_inputs(side: int) -> Tensor:
    """Returns normal noise, float32 [64, 3, side, side]."""
    return torch.randn(COUNT, 3, side, side, generator=torch.Generator().manual_seed(1))


def real_inputs(side: int) -> Tensor:
    """Returns held-out digits, float32 [64, 3, side, side]."""
    data = Digits("test", digits_transforms(side))
    return torch.stack([data[i * len(data) // COUNT][0] for i in range(COUNT)])


def realisation(
    artifact: Artifact, reference: ReferenceModel, runtime: str, side: int
) -> tuple[Run, tuple[str, ...]]:
    """Makes a runtime ready.

    Returns:
        What turns pictures into logits and how far each layer is from the reference model's, given
        the same integers; and the layers that run in float.
    """
    if runtime in ("inductor", "executorch"):
        record, float_layers = recorder(artifact, runtime, BATCH, side)

        def recorded(x: Tensor) -> tuple[Tensor, list[LayerDifference]]:
            logits, seen = record(x)
            return logits, differences(reference, seen, reference_outputs(reference, x, seen))

        return recorded, float_layers
    compiled: Any = qzoo.compile(artifact, runtime, threads=1, input_size=side)

    def run(x: Tensor) -> tuple[Tensor, list[LayerDifference]]:
        if runtime == "torch":
            seen = native_outputs(compiled.model, reference, x)
            given = differences(reference, seen, reference_outputs(reference, x, seen))
        else:
            given = compare_onnx_layers(reference, x, reference_outputs(reference, x), runtime)
        return compiled(x), given

    return run, compiled.float_layers


def compare(reference: ReferenceModel, run: Run, x: Tensor) -> dict[str, Any]:
    """Returns how far a runtime's layers and answers are from the reference model's."""
    layers: dict[str, tuple[int, float]] = {}
    answers, expected = [], []
    for part in x.split(BATCH):
        logits, given = run(part)
        answers.append(logits)
        with torch.no_grad():
            expected.append(reference(part))
        for d in given:
            most, share = layers.get(d.name, (0, 0.0))
            layers[d.name] = (max(most, d.max_steps), share + d.differing * len(part) / len(x))
    own, wanted = torch.cat(answers), torch.cat(expected)
    worst = max(layers, key=lambda name: layers[name])
    return {
        "images": len(x),
        "top1_equal": int((own.argmax(1) == wanted.argmax(1)).sum()),
        "logit_steps": int(((own - wanted).abs() / head_scale(reference.artifact)).round().max()),
        "layers": len(layers),
        "worst_layer_steps": layers[worst][0],
        "worst_layer": worst,
        "worst_layer_differing": round(layers[worst][1], 6),
    }


def digits(name: str, runtimes: list[str]) -> Iterator[dict[str, Any]]:
    """Yields a row per runtime: whether an embedded model answers all test digits alike.

    Of each image with another answer, `margins` holds how many steps of the output's scale the
    reference model's best class is ahead of the runtime's.
    """
    native = qzoo.get_model(name, weights="DIGITS_X86_V1", quantize=True)
    reference = build_reference(native)
    scale = head_scale(reference.artifact)
    data = Digits("test", digits_transforms(64))
    x = torch.stack([data[i][0] for i in range(len(data))])
    targets = torch.tensor(data.targets)
    with torch.no_grad():
        wanted = torch.cat([reference(part) for part in x.split(BATCH)])
    for runtime in runtimes:
        compiled = qzoo.compile(native, runtime, threads=1, batch_size=1, input_size=64)
        logits = torch.cat([compiled(part) for part in x.split(1)])
        answers = logits.argmax(1)
        differing = (answers != wanted.argmax(1)).nonzero().flatten()
        behind = wanted.max(1).values - wanted.gather(1, answers[:, None])[:, 0]
        yield {
            "model": name,
            "runtime": runtime,
            "inputs": "digits",
            "size": 64,
            "images": len(x),
            "top1_equal": len(x) - len(differing),
            "logit_steps": int(((logits - wanted).abs() / scale).round().max()),
            "float_layers": len(compiled.float_layers),
            "accuracy": round(100 * float((answers == targets).double().mean()), 3),
            "differing": " ".join(str(int(i)) for i in differing),
            "margins": " ".join(str(round(float(behind[i]) / scale)) for i in differing),
        }


def head_scale(artifact: Artifact) -> float:
    """Returns the step between neighbouring logits."""
    return next(la.scale for la in reversed(artifact.layers.values()) if la.op == "linear")


def note(path: Path, row: Row) -> None:
    """Writes a row in place of that of the same measurement, in the order of the builders."""
    row = {**dict.fromkeys(COLUMNS, ""), **row, **environment(PACKAGES)}
    rows = [r for r in read_rows(path) if any(r[k] != row[k] for k in KEY)] + [row]
    rows.sort(key=lambda r: (r["model"], RUNTIMES.index(r["runtime"]), r["inputs"]))
    write_csv(path, rows)


if __name__ == "__main__":
    main()
