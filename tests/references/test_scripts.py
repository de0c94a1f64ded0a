"""The reference scripts, run as a user runs them, on tiny settings."""

from __future__ import annotations

import csv
import hashlib
import importlib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import qzoo
from qzoo import training
from qzoo.artifact.format import Artifact
from qzoo.datasets.fractals import FractalsConfig
from qzoo.errors import ArgumentError, ArtifactError
from qzoo.training import sources
from tests.helpers.calling import python
from tests.helpers.places import REFERENCES

TINY = [
    *("--data", "digits", "--model", "shufflenet_v2_x0_5", "--batch-size", "128", "--lr", "0.1"),
    *("--train-crop-size", "16", "--augment", "none", "--seed", "3", "--threads", "1"),
]


def run(script: str, *options: object) -> str:
    """Runs a script in a process of its own; returns what it printed."""
    return python(REFERENCES / script, *options).stdout


_SCRIPTS = ("train", "ptq", "embed_digits")


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The scripts as modules; what they set for their process is undone afterwards."""
    monkeypatch.syspath_prepend(str(REFERENCES))
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    yield {"engine": training, "sources": sources} | {
        n: importlib.import_module(n) for n in _SCRIPTS
    }
    torch.set_num_threads(threads)
    torch.set_rng_state(state)


def call(scripts: dict[str, ModuleType], script: str, *options: object) -> str:
    """Does what `run` does, without starting Python and PyTorch once more."""
    arguments = list(map(str, options))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{script}.py", *arguments])
        done = CliRunner().invoke(scripts[script].main, arguments)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    run("train.py", *TINY, "--epochs", 2, "--output-dir", folder)
    return folder


def test_train_writes_weights_checkpoint_and_log(
    trained: Path, scripts: dict[str, ModuleType]
) -> None:
    assert sorted(p.name for p in trained.iterdir()) == [
        "checkpoint.pth", "log.csv", "model.safetensors",
    ]  # fmt: skip
    with (trained / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert 0 < float(rows[1]["loss"]) < float(rows[0]["loss"])
    model = scripts["engine"].load_float(trained / "model.safetensors")
    info = qzoo.native.model.model_info(model)
    assert not model.training
    assert info.classes == [str(d) for d in range(10)]
    assert info.transforms is not None
    assert info.transforms["crop_size"] == 16
    assert "references/train.py --data digits" in info.recipe["train"]


def test_resumed_run_ends_like_an_uninterrupted_one(
    trained: Path, tmp_path: Path, scripts: dict[str, ModuleType]
) -> None:
    call(scripts, "train", *TINY, "--epochs", 1, "--output-dir", tmp_path)
    torch.rand(1)  # the checkpoint, not the process, must say where the random numbers go on
    resume = ("--output-dir", tmp_path, "--resume", tmp_path / "checkpoint.pth")
    call(scripts, "train", *TINY, "--epochs", 2, *resume)
    straight, resumed = (
        torch.load(folder / "checkpoint.pth", weights_only=True) for folder in (trained, tmp_path)
    )
    assert straight["model"].keys() == resumed["model"].keys()
    assert all(torch.equal(v, resumed["model"][k]) for k, v in straight["model"].items())
    assert torch.equal(straight["random"][0]["torch"], resumed["random"][0]["torch"])


def test_ptq_writes_a_measured_artifact_and_repeats_itself(
    trained: Path, tmp_path: Path, scripts: dict[str, ModuleType]
) -> None:
    output, results = tmp_path / "int8.safetensors", tmp_path / "results.csv"
    options: tuple[object, ...] = (
        *("--data", "digits", "--checkpoint", trained / "model.safetensors", "--threads", 1),
        *("--num-calibration-batches", 2, "--output", output, "--results", results),
    )
    printed = run("ptq.py", *options)
    first = output.read_bytes()
    call(scripts, "ptq", *options)
    assert output.read_bytes() == first
    info = Artifact.read(output).info
    assert info.backend == "x86"
    assert info.recipe["calibration_images"] == 64
    assert f"top-1 {info.metrics['digits (held-out 25 %)']['acc@1']:.2f} %" in printed
    assert qzoo.load(output)(torch.zeros(1, 3, 16, 16)).shape == (1, 10)
    with results.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1
    assert rows[0]["n_test"] == "445"
    assert float(rows[0]["int8_top1"]) == info.metrics["digits (held-out 25 %)"]["acc@1"]


def test_embed_digits_writes_pictures_and_an_entry(
    trained: Path, tmp_path: Path, scripts: dict[str, ModuleType]
) -> None:
    (tmp_path / "meta").mkdir()
    described = tmp_path / "meta" / "shufflenet_v2_x0_5.json"
    described.write_text(json.dumps({"weights": {}}))
    output = tmp_path / "shufflenet_v2_x0_5_digits_onednn.safetensors"
    checkpoint = ("--data", "digits", "--checkpoint", trained / "model.safetensors")
    calibration = ("--backend", "onednn", "--num-calibration-batches", 1)
    call(scripts, "ptq", *checkpoint, *calibration, "--output", output)
    call(scripts, "embed_digits", "--embedded", tmp_path, "--metadata", tmp_path / "meta")
    entry = json.loads(described.read_text())["weights"]["DIGITS_ONEDNN_V1"]
    assert entry["url"] == f"embedded:{output.name}"
    assert (entry["backend"], entry["builder_kwargs"]) == ("onednn", {"num_classes": 10})
    assert entry["num_params"] == 352042
    assert len(list((tmp_path / "digits").glob("digit-?-????.png"))) == 10


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of pictures, bright and dark, as `--data-path` takes it."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2)):
        for name, base in (("bright", 160), ("dark", 10)):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = base + rng.integers(0, 60, (40, 50, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "photos"


@pytest.fixture
def few_fractals(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fractals that take a second to draw, instead of the yardstick."""
    monkeypatch.setenv("QZOO_HOME", str(tmp_path / "home"))
    # Down to 2 x 2 pixels inside the models: bfloat16 leaves weights that see only the frame of a
    # smaller picture with gradients of chance, which is harmless but spoils comparisons.
    small = FractalsConfig(classes=4, train_images=64, test_images=16, size=40, seed=0)
    monkeypatch.setattr(scripts["sources"], "FRACTALS", small)


FRACTALS = [
    *("--data", "fractals", "--model", "shufflenet_v2_x0_5", "--batch-size", "32", "--epochs", "3"),
    *("--lr-scheduler", "cosine", "--lr-warmup-epochs", "1", "--amp", "--channels-last"),
    *("--eval-every", "2", "--seed", "1", "--threads", "1"),
]


def test_fractals_resume_bit_for_bit_in_bfloat16_too(
    few_fractals: None,
    scripts: dict[str, ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    straight, broken, results = tmp_path / "a", tmp_path / "b", tmp_path / "results.csv"
    printed = call(scripts, "train", *FRACTALS, "--output-dir", straight, "--results", results)
    with monkeypatch.context() as patch:
        epochs: list[int] = []
        files = scripts["engine"].checkpoint
        whole = files.save_checkpoint

        def pull_the_plug(path: Path, state: dict[str, Any]) -> None:
            whole(path, state)
            epochs.append(len(state["log"]))
            if len(epochs) == 2:
                raise OSError("the plug was pulled")

        patch.setattr(files, "save_checkpoint", pull_the_plug)
        options = [*FRACTALS, "--output-dir", str(broken)]
        assert CliRunner().invoke(scripts["train"].main, options).exit_code == 2
    call(scripts, "train", *FRACTALS, "--output-dir", broken, "--resume", broken / "checkpoint.pth")
    weights = [(folder / "model.safetensors") for folder in (straight, broken)]
    states = [scripts["engine"].load_float(path).state_dict() for path in weights]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])

    with (straight / "log.csv").open(newline="") as file:
        log = list(csv.DictReader(file))
    assert [bool(line["test_top1"]) for line in log] == [False, True, True]
    assert [round(float(line["lr"]), 4) for line in log] == [0.05, 0.1, 0.05]
    with results.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["data"], row["n_test"], row["input_size"], row["epochs"]) == (
        "fractals", "64", "40", "3",
    )  # fmt: skip
    assert row["sha256"] == hashlib.sha256(weights[0].read_bytes()).hexdigest()
    assert f"top-1 {float(row['float_top1']):.2f} %" in printed
    assert float(row["float_top1_low"]) < float(row["float_top1"]) < float(row["float_top1_high"])


def test_batches_from_memory_are_the_transformed_pictures(
    few_fractals: None, scripts: dict[str, ModuleType]
) -> None:
    data = scripts["sources"].open_data("fractals", None)
    preset = data.preset()
    pictures = data.split("train", preset)
    engine = scripts["engine"]
    plain = engine.MemoryBatches(pictures, engine.Order(256, 50, seed=0), preset, turn=False)
    assert len(plain) == 5
    batches = list(plain.epoch(0))
    assert [tuple(images.shape) for images, _ in batches] == [(50, 3, 40, 40)] * 5
    got = torch.cat([images for images, _ in batches])
    labels = torch.cat([labels for _, labels in batches]).tolist()
    known = torch.stack([pictures[i][0] for i in range(256)])
    exact = "donot_use_mm_for_euclid_dist"
    nearest = torch.cdist(got.flatten(1), known.flatten(1), compute_mode=exact).min(dim=1)
    assert float(nearest.values.max()) < 1e-4
    assert len(set(nearest.indices.tolist())) == 250
    assert labels == [pictures.targets[i] for i in nearest.indices.tolist()]


def test_turning_gives_each_of_the_eight_ways(scripts: dict[str, ModuleType]) -> None:
    image = torch.arange(9.0).reshape(1, 1, 3, 3)
    ways = {
        tuple(scripts["engine"].batches.turned(image, way).flatten().tolist()) for way in range(8)
    }
    rotated = [torch.rot90(image, k, (-2, -1)) for k in range(4)]
    expected = {tuple(x.flatten().tolist()) for r in rotated for x in (r, r.flip(-1))}
    assert ways == expected
    assert len(ways) == 8


def test_own_pictures(photos: Path, tmp_path: Path, scripts: dict[str, ModuleType]) -> None:
    output, weights = tmp_path / "int8.safetensors", tmp_path / "model.safetensors"
    data = ("--data-path", photos, "--batch-size", 8)
    model = ("--model", "mobilenet_v3_small", "--epochs", 1, "--train-crop-size", 32)
    call(scripts, "train", *data, *model, "--output-dir", tmp_path)
    printed = call(scripts, "ptq", *data, "--checkpoint", weights, "--output", output)
    assert "Calibrating on all 16 training images" in printed
    info = Artifact.read(output).info
    assert info.classes == ["bright", "dark"]
    assert info.transforms is not None
    assert (info.transforms["crop_size"], info.transforms["resize_size"]) == (32, 37)


TRAIN = ["--data", "digits", "--model", "resnet18", "--output-dir", "@"]
PTQ = ["--data", "digits", "--output", "@/i.safetensors"]


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        ("train", [*TRAIN, "--model", "resnet19"], "Did you mean 'resnet18'"),
        ("train", TRAIN[2:], "--data digits|fractals or --data-path"),
        ("train", [*TRAIN[2:], "--data-path", "@/none"], "no data set or folder"),
        ("train", [*TRAIN, "--batch-size", "5000"], "1352 images"),
        ("train", [*TRAIN, "--model", "inception_v3"], "at least 75 pixels"),
        ("train", [*TRAIN, "--val-crop-size", "9", "--val-resize-size", "8"], "larger than"),
        ("train", [*TRAIN, "--weights", "NONE"], "no member 'NONE'"),
        ("train", [*TRAIN, "--epochs", "2", "--lr-warmup-epochs", "2"], "less than --epochs"),
        ("train", [*TRAIN, "--resume", "@/none.pth"], "no checkpoint"),
        ("train", [*TRAIN, "--resume", "@/junk"], "not a checkpoint"),
        ("train", [*TRAIN, "--lr", "1e30", "--train-crop-size", "8"], "Lower --lr"),
        ("train", [*TRAIN, "--output-dir", "@/junk"], "File exists"),
        ("ptq", PTQ, "--checkpoint FILE"),
        ("ptq", [*PTQ, "--checkpoint", "@/none"], "does not exist"),
        ("ptq", [*PTQ, "--checkpoint", "@/junk"], "not a float checkpoint"),
        ("ptq", [*PTQ, "--weights", "DEFAULT"], "--model"),
        ("ptq", [*PTQ, "--backend", "x87", "--checkpoint", "@/junk"], "'x87'"),
        ("embed_digits", ["--embedded", "@"], "no artifacts"),
    ],
)
def test_bad_input_is_one_sentence(
    script: str,
    options: list[str],
    message: str,
    tmp_path: Path,
    scripts: dict[str, ModuleType],
) -> None:
    (tmp_path / "junk").write_bytes(b"no model")
    arguments = [o.replace("@", str(tmp_path)) for o in options]
    done = CliRunner().invoke(scripts[script].main, arguments)
    assert done.exit_code == 2
    assert message in done.output
    assert "Traceback" not in done.output
    assert not list(tmp_path.glob("*.safetensors"))


def test_data_of_other_classes_is_refused(
    trained: Path, photos: Path, tmp_path: Path, scripts: dict[str, ModuleType]
) -> None:
    weights, output = trained / "model.safetensors", tmp_path / "int8.safetensors"
    options = ["--data-path", photos, "--checkpoint", weights, "--output", output]
    done = CliRunner().invoke(scripts["ptq"].main, list(map(str, options)))
    assert done.exit_code == 2
    assert "10 classes apart (0, 1, 2" in done.output
    assert "has 2 (bright, dark" in done.output
    assert not output.exists()


def test_resuming_another_run_is_refused(
    trained: Path, tmp_path: Path, scripts: dict[str, ModuleType]
) -> None:
    load = scripts["engine"].load_checkpoint
    with pytest.raises(ArtifactError, match="model='shufflenet_v2_x0_5', not 'resnet18'"):
        load(trained / "checkpoint.pth", {"model": "resnet18"})


def test_calibration_images_are_stratified_and_seeded(scripts: dict[str, ModuleType]) -> None:
    targets = [0] * 90 + [1] * 50 + [2] * 10
    chosen = scripts["engine"].stratified(targets, 30, seed=1)
    assert Counter(targets[i] for i in chosen) == {0: 10, 1: 10, 2: 10}
    assert chosen == scripts["engine"].stratified(targets, 30, seed=1)
    assert chosen != scripts["engine"].stratified(targets, 30, seed=2)
    assert sorted(scripts["engine"].stratified(targets, 999, seed=1)) == list(range(150))


def test_results_rows_are_replaced_by_their_key(
    tmp_path: Path, scripts: dict[str, ModuleType]
) -> None:
    path, put = tmp_path / "r.csv", scripts["engine"].put_row
    for model, top1 in (("b", 1), ("a", 2), ("b", 3)):
        put(path, {"model": model, "top1": top1}, ("model",))
    assert path.read_text() == "model,top1\na,2\nb,3\n"
    with pytest.raises(ArtifactError, match="other columns"):
        put(path, {"model": "c"}, ("model",))


def test_classes_of_both_splits_must_agree(photos: Path, scripts: dict[str, ModuleType]) -> None:
    (photos / "val" / "grey").mkdir()
    with pytest.raises(ArgumentError, match="differ in the classes grey"):
        scripts["sources"].open_data(None, str(photos))
