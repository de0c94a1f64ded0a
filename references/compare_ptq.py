"""Compares post-training quantization by torchvision, ONNX Runtime, NNCF and qzoo.

python references/compare_ptq.py

From the float checkpoints of references/train.py it writes one row per model and method, and the
README's table. What was measured before, with the same checkpoint, code and versions, is kept.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import click
import readme_tables
import torch
from ptq_case import Case
from ptq_methods import METHODS, Method
from ptq_own import TORCHVISION_IMAGES
from readme_tables import read_rows
from torch import nn
from torch.utils.data import TensorDataset
from tqdm import tqdm

from qzoo import training
from qzoo._core.option_types import MOST_SEED, MOST_THREADS, Whole
from qzoo._torch.threads import torch_threads
from qzoo.datasets.evaluate import evaluate
from qzoo.errors import ArgumentError, QzooError, did_you_mean
from qzoo.native.model import model_info
from qzoo.pictures.folders import same_names
from qzoo.quantize.data import Calibration, open_calibration
from qzoo.registry import get_entry
from qzoo.training import option, sources
from qzoo.transforms import ImageClassification

MODELS = (
    "resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "googlenet",
    "shufflenet_v2_x0_5", "shufflenet_v2_x1_0",
)  # fmt: skip
KEY = ("model", "data", "method")
#: Columns with versions, besides those of `training.environment`.
PACKAGES = ("onnx", "onnxruntime", "openvino", "nncf")


@dataclass(frozen=True)
class Options(training.Options):
    """The options of this script."""

    data: str = option("fractals", type=click.Choice(sources.NAMED_DATA))
    checkpoints: str | None = option(
        None, help="Folder with MODEL/model.safetensors; by default runs/DATA."
    )
    models: str = option(",".join(MODELS), help="Names with commas between.")
    methods: str = option("*", help="Names or shell patterns with commas between.")
    images: int = option(512, type=training.POSITIVE, help="To calibrate on.")
    seed: int = option(0, type=Whole(0, MOST_SEED), help="Picks calibration images.")
    threads: int | None = option(None, type=Whole(1, MOST_THREADS), help="CPU threads; all cores.")
    results: str | None = option(
        None, help="The CSV file; by default references/results/ptq_DATA.csv."
    )
    again: bool = option(False, help="Measure what was measured already, too.")


@click.command(cls=training.Command, context_settings={"show_default": True})
@training.click_options(Options)
def main(**values: Any) -> None:
    """Measures how much accuracy each method of post-training quantization costs.

    Every method starts from the same float weights. All but torchvision's calibrate on the same
    training images, an equal share of every class. A method that fails gets no row, but a line on
    stderr, and the exit code is 1.
    """
    options = Options.of(values)
    click.get_current_context().with_resource(torch_threads(options.threads))
    methods = chosen_methods(options.methods)
    models = [get_entry(name).name for name in options.models.split(",")]
    data = sources.open_data(options.data, None)
    standard = readme_tables.RESULTS / f"ptq_{data.name}.csv"
    results = Path(options.results or standard)
    folder = Path(options.checkpoints or f"runs/{data.name}")
    comparison = Comparison(data, results, options)
    bar = tqdm(models, unit="model")
    for model in bar:
        bar.set_description(model)
        comparison.run(model, folder / model / "model.safetensors", methods)
    if results.resolve() == readme_tables.PTQ_RESULTS:
        readme_tables.rewrite(readme_tables.README, None, readme_tables.TABLES)
    if comparison.failures:
        raise click.exceptions.Exit(1)


class Comparison:
    """Methods by models on one data set.

    Args:
        data: The data set.
        results: The CSV file of rows.
        options: Those of the command line.
    """

    def __init__(self, data: sources.Data, results: Path, options: Options) -> None:
        self.data, self.results, self.options = data, results, options
        self.failures = 0
        self._tests: dict[str, TensorDataset] = {}

    def run(self, name: str, checkpoint: Path, methods: Sequence[str]) -> None:
        """Measures those methods on one model that have no valid row yet.

        Args:
            name: The model.
            checkpoint: Its float weights.
            methods: Names of `METHODS`.
        """
        try:
            model, preset = self._open(name, checkpoint)
        except QzooError as error:
            self._failed(name, "no method", error)
            return
        train = self.data.split("train", preset)
        calibration = open_calibration(
            train,
            images=self.options.images,
            batch_size=256,
            seed=self.options.seed,
            transform=None,
        )
        sha256 = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
        wanted = {}
        for method in methods:
            identity = self._identity(name, method, sha256, calibration)
            if identity is not None:
                wanted[method] = identity
        if not wanted:
            return
        images, test = torch.cat(list(calibration)), self._test_set(preset)
        with tempfile.TemporaryDirectory() as folder:
            case = Case(
                name, checkpoint, model, train, calibration, images, Path(folder),
                self.options.threads,
            )  # fmt: skip
            for method, identity in wanted.items():
                try:
                    row = self._measure(METHODS[method], case, identity, test)
                except Exception as error:  # other tools raise errors of every kind
                    drop_row(self.results, identity)
                    self._failed(name, method, error)
                else:
                    training.put_row(self.results, row, KEY)
                    tqdm.write(f"{name}, {method}: top-1 {row['top1']} %")

    def _open(self, name: str, checkpoint: Path) -> tuple[nn.Module, ImageClassification]:
        model = training.load_float(checkpoint)
        info = model_info(model)
        if info.architecture != name or not same_names(info.classes, self.data.classes):
            raise ArgumentError(f"{checkpoint} is not a {name} trained on {self.data.name}.")
        return model, ImageClassification.from_dict(info.transforms or {})

    def _identity(
        self, name: str, method: str, checkpoint: str, calibration: Calibration
    ) -> dict[str, Any] | None:
        """Returns all that decides on a row; None where there is such a row, or cannot be one."""
        what = METHODS[method]
        if missing := what.missing():
            need = f"needs {' and '.join(missing)}, which is not installed"
            _say(f'{name}, {method}: {need}: pip install "qzoo[peers]"')
            return None
        stratified = what.images == "stratified"
        counts = {"stratified": calibration.count, "first": TORCHVISION_IMAGES, "none": 0}
        identity = {
            "model": name,
            "data": self.data.name,
            "method": method,
            "checkpoint_sha256": checkpoint,
            "code_sha256": what.code_sha256(name),
            "calibration_images": counts[what.images],
            "calibration_seed": calibration.seed if stratified else "",
        }
        decisive = {k: v for k, v in versions().items() if k in ("torch", *what.packages)}
        text = {k: str(v) for k, v in {**identity, **decisive}.items()}
        measured = any(text.items() <= row.items() for row in read_rows(self.results))
        return None if measured and not self.options.again else identity

    def _measure(
        self, what: Method, case: Case, identity: dict[str, Any], test: TensorDataset
    ) -> dict[str, Any]:
        result = what(case)
        sha256 = result.calibration_sha256
        if what.images == "stratified":
            if sha256 not in ("", case.calibration.sha256):
                raise ArgumentError("it calibrated on other images than the rest")
            sha256 = case.calibration.sha256
        metrics = evaluate(result.model, test, batch_size=64)
        low, high = metrics.interval()
        check = evaluate(result.again, test, batch_size=64).top1 if result.again else None
        return {
            **{k: identity[k] for k in KEY},
            "runtime": result.runtime,
            "backend": result.backend,
            "top1": round(metrics.top1, 3),
            "top1_low": round(low, 3),
            "top1_high": round(high, 3),
            "n_test": metrics.n,
            "onnxruntime_top1": "" if check is None else round(check, 3),
            "mib": result.mib,
            "seconds": round(result.seconds, 2),
            "cpu_seconds": round(result.cpu_seconds, 2),
            "input_size": case.images.shape[-1],
            "settings": result.settings,
            **{k: v for k, v in identity.items() if k not in KEY},
            "calibration_sha256": sha256,
            **training.environment(),
            **versions(),
            "command": training.command_line("compare_ptq.py"),
        }

    def _test_set(self, preset: ImageClassification) -> TensorDataset:
        """Returns the test split, transformed once for all models."""
        key = str(preset.to_dict())
        if key not in self._tests:
            split = self.data.split("test", preset)
            bar = tqdm(range(len(split)), desc="prepare test images", leave=False)
            images = torch.stack([split[i][0] for i in bar])
            self._tests = {key: TensorDataset(images, torch.tensor(split.targets))}
        return self._tests[key]

    def _failed(self, name: str, method: str, error: Exception) -> None:
        self.failures += 1
        kind = "" if isinstance(error, QzooError) else f"{type(error).__name__}: "
        _say(f"{name}, {method}: {kind}{' '.join(str(error).split())[:300]}")


def chosen_methods(patterns: str) -> list[str]:
    """Returns the names of `METHODS` that match any of some shell patterns, in their order.

    Raises:
        ArgumentError: A pattern matches none.
    """
    wanted = [pattern.strip() for pattern in patterns.split(",")]
    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) for name in METHODS):
            raise ArgumentError(
                f"--methods {pattern!r} matches none of {', '.join(METHODS)}."
                + did_you_mean(pattern, METHODS)
            )
    return [name for name in METHODS if any(fnmatchcase(name, p) for p in wanted)]


def versions() -> dict[str, str]:
    """Returns the versions of PyTorch and of the peers' packages, "" for those not installed."""
    found = {"torch": str(torch.__version__)}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = ""
    return found


def drop_row(path: Path, key: Mapping[str, Any]) -> None:
    """Removes the row of a model and method that can no longer be measured, if there is one."""
    rows = read_rows(path)
    kept = [row for row in rows if any(row[k] != key[k] for k in KEY)]
    if kept and len(kept) < len(rows):
        training.write_csv(path, kept)


def _say(line: str) -> None:
    tqdm.write(line, file=sys.stderr)


if __name__ == "__main__":
    main()
