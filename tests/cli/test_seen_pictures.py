"""Accuracy is measured on pictures that a model has not seen, or it is said that it has seen them.

What finetune, quantize and tune use is noted in the files that they write; evaluate, analyze and
tune look it up, by content.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Subset
from torchvision.datasets import ImageFolder

import qzoo
from qzoo.artifact.format import Artifact
from qzoo.artifact.seen import Notes, file_sha256, noted
from qzoo.datasets.digits import digits_transforms
from qzoo.errors import QuantizationWarning
from qzoo.importers.checkpoint import load_float, save_float
from qzoo.native.model import model_info
from qzoo.quantize import ptq, tune
from qzoo.quantize.recipes import Recipe
from tests.helpers import trained
from tests.helpers.commands import invoke
from tests.helpers.pictures import NAMES, write_digits

SIZE = 32


def figures(*words: object) -> tuple[dict[str, Any], str]:
    done = invoke(*words, "--json")
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.stdout), done.stderr


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures of each of four digits; not to be changed."""
    return write_digits(tmp_path_factory.mktemp("seen") / "photos", 10)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Float weights of four classes that note nothing."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("float") / "model.safetensors"
    model = qzoo.shufflenet_v2_x0_5(num_classes=4)
    save_float(model, path, classes=list(NAMES), transforms=digits_transforms(SIZE).to_dict())
    return path


@pytest.fixture(scope="module")
def tuned_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """What finetune leaves and says."""
    digits = tmp_path_factory.mktemp("digits") / "model.safetensors"
    save_float(trained.digits_model("shufflenet_v2_x0_5"), digits)
    out = tmp_path_factory.mktemp("run") / "run"
    said, _ = figures(
        "finetune", photos, "--checkpoint", digits, "--size", SIZE, "--epochs", 1, "--threads", 1,
        "--augment", "none", "--recipe", "fast", "-o", out,
    )  # fmt: skip
    return out, said


def pictures(root: Path) -> list[Path]:
    return sorted(root.rglob("*.png"))


def test_a_run_records_its_split(photos: Path, tuned_run: tuple[Path, dict]) -> None:
    out, _ = tuned_run
    with (out / "split.csv").open(newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert rows.keys() == {str(p.relative_to(photos)) for p in pictures(photos)}
    for name, row in rows.items():
        assert row["sha256"] == hashlib.sha256((photos / name).read_bytes()).hexdigest()
    held = {name for name, row in rows.items() if row["part"] == "held out"}
    assert [sum(n.startswith(c) for n in held) for c in NAMES] == [2, 2, 2, 2]
    # Both models note the others, and where they were.
    for info in (model_info(load_float(out / "model.safetensors")),
                 Artifact.read(out / "int8.safetensors").info):  # fmt: skip
        notes = Notes([info.seen["training"]])
        found = {n for n in rows if notes.has(file_sha256(photos / n))}
        assert found == rows.keys() - held
    assert "one/" not in json.dumps(info.seen), "no names"
    assert set(info.seen) == {"training", "calibration"}


@pytest.mark.parametrize("file", ["model.safetensors", "int8.safetensors"])
def test_evaluate_measures_what_finetune_held_out(
    file: str, photos: Path, tuned_run: tuple[Path, dict], tmp_path: Path
) -> None:
    out, said = tuned_run
    row, err = figures("evaluate", out / file, "--data", photos)
    kind = "float" if file.startswith("model") else "int8"
    assert row["n"] == said[kind]["n"] == 8 and row["left_out"] == 32
    assert row["top1"] == said[kind]["top1"], "the figure of the run itself"
    assert row["seen_in_training"] == 0
    assert "8 of 40 pictures that the model has not seen" in err and "trained on 32" in err
    # By content: elsewhere and under other names.
    moved = tmp_path / "elsewhere"
    for number, path in enumerate(pictures(photos)):
        (moved / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, moved / path.parent.name / f"copy-{number}.png")
    again, _ = figures("evaluate", out / file, "--data", moved)
    assert {k: v for k, v in again.items() if k != "data"} == {
        k: v for k, v in row.items() if k != "data"
    }
    # What a user holds out is measured as it is, and what the model has seen of it is said.
    for half in ("train", "val"):
        shutil.copytree(photos, tmp_path / "halves" / half)
    whole, err = figures("evaluate", out / file, "--data", tmp_path / "halves")
    assert whole["n"] == 40 and whole["seen_in_training"] == 32
    assert "Warning: the model was trained on 32" in err and "of these 40 pictures" in err
    everything, err = figures("evaluate", out / file, "--data", photos, "--all-pictures")
    assert everything["n"] == 40 and everything["seen_in_training"] == 32
    assert "Warning: the model was trained on 32" in err


def test_where_all_were_seen_it_is_said(
    photos: Path, tuned_run: tuple[Path, dict], tmp_path: Path
) -> None:
    out, _ = tuned_run
    notes = Notes([model_info(load_float(out / "model.safetensors")).seen["training"]])
    for path in pictures(photos):
        if notes.has(file_sha256(path)):
            (tmp_path / "known" / path.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / "known" / path.parent.name)
    row, err = figures("evaluate", out / "int8.safetensors", "--data", tmp_path / "known")
    assert row["n"] == row["seen_in_training"] == row["seen_in_calibration"] == 32
    assert "trained on 32 and was calibrated on 32 of these 32 pictures" in err


@pytest.mark.parametrize(("images", "left"), [(12, 28), (40, 0)])
def test_quantize_then_evaluate(
    images: int, left: int, photos: Path, plain: Path, tmp_path: Path
) -> None:
    out = tmp_path / "int8.safetensors"
    figures("quantize", plain, "--data", photos, "-o", out, "--images", images, "--recipe", "fast")
    row, err = figures("evaluate", out, "--data", photos)
    assert row["seen_in_training"] is None, "nobody noted any training"
    assert row["n"] == (left or 40) and row["left_out"] == (12 if left else 0)
    assert row["seen_in_calibration"] == (0 if left else 40)
    assert f"calibrated on {images} of" in err
    assert ("Warning" in err) == (not left)


def test_quantize_leaves_what_was_held_out(
    photos: Path, tuned_run: tuple[Path, dict], tmp_path: Path
) -> None:
    out, said = tuned_run
    int8 = tmp_path / "int8.safetensors"
    row, _ = figures(
        "quantize", out / "model.safetensors", "--data", photos, "-o", int8, "--recipe", "fast"
    )
    assert row["recipe"]["calibration_images"] == 32
    assert row["float"]["n"] == 8 and row["float"]["top1"] == said["float"]["top1"]
    found, _ = figures("evaluate", int8, "--data", photos)
    assert found["n"] == 8 and found["top1"] == row["int8"]["top1"]


def test_tune_judges_on_other_pictures(
    photos: Path, plain: Path, tuned_run: tuple[Path, dict], tmp_path: Path
) -> None:
    out = tmp_path / "tuned.safetensors"
    common = ("--data", photos, "-o", out, "--recipe", "fast", "--max-drop", 100)
    row, _ = figures("tune", plain, *common)
    assert (row["calibration_images"], row["images"]) == (32, 8)
    found, _ = figures("evaluate", out, "--data", photos)
    assert found["n"] == 8 and found["top1"] == row["top1"], "none of them calibrated"
    done = invoke("tune", tuned_run[0] / "model.safetensors", *common)
    assert done.exit_code == 0, done.output
    assert "calibrated on 32 pictures, judged on 8 others (photos (not trained on))" in done.stdout
    # Pictures without classes are divided as well.
    alone = tmp_path / "alone"
    alone.mkdir()
    for number, path in enumerate(pictures(photos)):
        shutil.copy(path, alone / f"{number}.png")
    row, _ = figures("tune", plain, *common, "--data", alone)
    assert (row["calibration_images"], row["images"]) == (32, 8) and row["top1"] is None


def test_analyze_leaves_seen_pictures_out(photos: Path, tuned_run: tuple[Path, dict]) -> None:
    files = (tuned_run[0] / "model.safetensors", tuned_run[0] / "int8.safetensors")
    few = ("--data", photos, "--sensitivity-images", 1)
    row, err = figures("analyze", *files, *few)
    assert row["accuracy"]["images"] == 8 and "8 of 40" in err
    assert row["pictures"]["left_out"] == 32


def test_tune_in_python_divides_what_it_is_given(photos: Path, plain: Path) -> None:
    model = load_float(plain)
    options = {"recipe": "fast", "progress": False, "max_drop": 100}
    folder = tune(model, photos, **options)
    assert (folder.calibration_images, folder.images) == (32, 8)
    data = ImageFolder(str(photos), digits_transforms(SIZE))
    tuned = tune(model, data, **options)
    assert (tuned.calibration_images, tuned.images) == (32, 8)
    notes = Notes([tuned.artifact.info.seen["calibration"]])
    assert sum(notes.has(file_sha256(path)) for path, _ in data.samples) == 32
    halves = tune(model, Subset(data, range(20)), test_data=Subset(data, range(20, 40)), **options)
    assert (halves.calibration_images, halves.images) == (20, 20)
    with pytest.warns(QuantizationWarning, match="the same images"):
        tune(model, torch.stack([data[i][0] for i in range(4)]), **options)


def test_calibration_is_noted_by_every_way_in(photos: Path, plain: Path) -> None:
    model, transform = load_float(plain), digits_transforms(SIZE)
    options: dict[str, Any] = {"recipe": Recipe("t", ("weights", "calibrate", "share_ranges"))}
    options |= {"images": 6, "progress": False}
    whole = ImageFolder(str(photos), transform)
    for data in (photos, whole, Subset(whole, range(30))):
        info = model_info(ptq(model, data, **options))
        assert len(info.seen["calibration"]) == 6 * 8
    tensors = torch.stack([whole[i][0] for i in range(6)])
    assert model_info(ptq(model, tensors, **options)).seen == {}


def test_what_was_seen_before_stays_seen(photos: Path, tmp_path: Path) -> None:
    """A model that is trained on has seen the pictures of both trainings."""
    path = tmp_path / "earlier.safetensors"
    seen = noted({}, "training", [hashlib.sha256(b"of another folder").digest()])
    save_float(trained.digits_model("shufflenet_v2_x0_5"), path, seen=seen)
    done = invoke(
        "finetune", photos, "--checkpoint", path, "--size", SIZE, "--epochs", 1, "--threads", 1,
        "--augment", "none", "--float", "-o", tmp_path / "run",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    info = model_info(load_float(tmp_path / "run" / "model.safetensors"))
    assert len(info.seen["training"]) == 33 * 8
    assert Notes([info.seen["training"]]).has(hashlib.sha256(b"of another folder").digest())
