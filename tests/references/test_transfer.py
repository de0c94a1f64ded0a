"""references/transfer.py and `qzoo finetune`: from a folder of pictures to an int8 model."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

import qzoo
from qzoo.artifact.format import Artifact
from qzoo.datasets.evaluate import Metrics
from qzoo.datasets.holdout import check_pictures, hold_out
from qzoo.datasets.sources import open_data
from qzoo.errors import ArgumentError
from qzoo.importers.checkpoint import load_float, save_float
from qzoo.native.model import model_info
from qzoo.training import Finished
from tests.helpers import trained
from tests.helpers.calling import fail, rows, succeed
from tests.helpers.commands import invoke
from tests.helpers.pictures import NAMES, write_digits

pytestmark = pytest.mark.usefixtures("own_cache")
TINY = [
    *("--train-crop-size", "64", "--val-resize-size", "64", "--augment", "none"),
    *("--workers", "0", "--threads", "1"),
    *("--epochs", "2", "--batch-size", "16"),
]
CLASSES = list(NAMES)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of four of the digits in a folder each, with nothing held out; not to be changed."""
    return write_digits(tmp_path_factory.mktemp("digits") / "photos", 25)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Float weights that know all ten digits: ten classes with other names."""
    path = tmp_path_factory.mktemp("float") / "model.safetensors"
    save_float(trained.digits_model("shufflenet_v2_x0_5"), path)
    return path


def finetune(*options: object) -> Result:
    return invoke("finetune", *options)


def test_transfer_learns_new_classes_and_quantizes(
    photos: Path, checkpoint: Path, tmp_path: Path
) -> None:
    output, results = tmp_path / "run", tmp_path / "results.csv"
    printed = succeed(
        "transfer", *TINY, "--data-path", photos, "--checkpoint", checkpoint,
        "--output-dir", output, "--results", results, "--quantize", "ptq", "--head-epochs", 2,
    )  # fmt: skip
    assert {p.name for p in output.iterdir()} == {
        "checkpoint.pth", "int8.safetensors", "log.csv", "model.safetensors", "split.csv",
    }  # fmt: skip
    row = rows(results)[0]
    assert float(row["float_top1"]) >= 80, "a model that knows digits learns four of them at once"
    assert float(row["int8_top1"]) >= 80
    assert int(row["n_test"]) == 20
    assert float(row["int8_mib"]) < 0.5 * float(row["float_mib"])
    assert float(row["int8_ms"]) > 0
    assert "qzoo classify picture.jpg --model" in printed

    model = load_float(output / "model.safetensors")
    info = model_info(model)
    assert info.classes == CLASSES
    assert info.builder_kwargs["num_classes"] == 4
    artifact = Artifact.read(output / "int8.safetensors")
    assert artifact.info.classes == CLASSES
    assert artifact.info.transforms == info.transforms
    assert info.transforms is not None and info.transforms["mean"] == [0.5, 0.5, 0.5], "as trained"
    assert "references/transfer.py" in artifact.info.recipe["train"]
    # What it prints at the end works.
    picture = photos / "seven" / "3.png"
    done = invoke("classify", picture, "--model", output / "int8.safetensors", "--json")
    assert done.exit_code == 0, done.output
    assert "seven" in done.output
    measured = succeed(
        "evaluate", "--data-path", _halves(photos, tmp_path), "--checkpoint",
        output / "int8.safetensors",
    )  # fmt: skip
    assert "on 100 images" in measured


def _halves(photos: Path, folder: Path) -> Path:
    """The same pictures, all of them in val; train has one of each."""
    for name in CLASSES:
        shutil.copytree(photos / name, folder / "halves" / "val" / name)
        (folder / "halves" / "train" / name).mkdir(parents=True)
        shutil.copy(photos / name / "0.png", folder / "halves" / "train" / name)
    return folder / "halves"


def test_the_head_learns_alone_at_first(photos: Path, checkpoint: Path, tmp_path: Path) -> None:
    options = ("--data-path", photos, "--checkpoint", checkpoint, "--quantize", "none")
    succeed("transfer", *TINY, *options, "--head-epochs", 2, "--output-dir", tmp_path)
    before, after = (load_float(p) for p in (checkpoint, tmp_path / "model.safetensors"))
    changed = {
        name
        for name, value in after.state_dict().items()
        if value.shape != before.state_dict()[name].shape
        or not torch.equal(value, before.state_dict()[name])
    }
    assert changed == {"fc.weight", "fc.bias"}, "batch norm's statistics stay, too"
    succeed("transfer", *TINY, *options, "--head-epochs", 1, "--output-dir", tmp_path / "both")
    after = load_float(tmp_path / "both" / "model.safetensors")
    assert not torch.equal(after.conv1[0].weight, before.conv1[0].weight)


@pytest.mark.extended
def test_quantization_aware_training_follows(
    photos: Path, checkpoint: Path, tmp_path: Path
) -> None:
    options = ("--data-path", photos, "--checkpoint", checkpoint, "--qat-epochs", 1)
    printed = succeed(
        "transfer", *TINY, *options, "--quantize", "qat", "--output-dir", tmp_path / "qat"
    )
    assert "int8 (QAT)" in printed
    artifact = Artifact.read(tmp_path / "qat" / "int8.safetensors")
    assert artifact.info.recipe["method"] == "QAT"
    assert artifact.info.classes == CLASSES
    again = succeed(
        "transfer", *TINY, *options, "--quantize", "qat", "--output-dir", tmp_path / "qat",
        "--resume", "auto",
    )  # fmt: skip
    assert again.count("Going on from") == 2, "neither training starts anew"
    resumed = Artifact.read(tmp_path / "qat" / "int8.safetensors")
    assert all(torch.equal(v, resumed.tensors[k]) for k, v in artifact.tensors.items())


@pytest.mark.extended
def test_training_goes_on_where_ptq_loses_too_much(
    photos: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One scale for all channels is more than these weights bear."""
    options = (
        *TINY, "--data-path", photos, "--checkpoint", checkpoint, "--head-epochs", 2,
        "--backend", "qnnpack", "--recipe", "fast", "--qat-epochs", 1, "--output-dir", tmp_path,
    )  # fmt: skip
    printed = succeed("transfer", *options)
    assert "PTQ loses" in printed
    assert "int8 (QAT)" in printed
    artifact = Artifact.read(tmp_path / "int8.safetensors")
    assert artifact.info.backend == "qnnpack"
    assert artifact.info.recipe["method"] == "QAT"
    # A training that makes it worse is not what anybody wants to be left with.
    module = importlib.import_module("qzoo.training.transfer")
    real = module.finish_qat

    def worse(*args: Any, **kwargs: Any) -> Finished:
        done = real(*args, **kwargs)
        return dataclasses.replace(done, metrics=Metrics(done.metrics.n, {1: 0, 5: 0}))

    monkeypatch.setattr(module, "finish_qat", worse)
    printed = succeed("transfer", *options, "--overwrite")
    assert "below PTQ, whose model is kept" in printed
    assert Artifact.read(tmp_path / "int8.safetensors").info.recipe["method"].startswith("PTQ")


def test_finetune_is_one_command(photos: Path, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "own"
    common = ("--checkpoint", checkpoint, "--size", 64, "--epochs", 1, "--threads", 1)
    done = finetune(photos, *common, "--augment", "none", "--out", out, "--json")
    assert done.exit_code == 0, (done.output, done.exception)
    found = json.loads(done.stdout)
    assert found["float"]["n"] == found["int8"]["n"] == 20
    assert found["float"]["top1"] >= 80
    assert found["int8"]["bytes"] == (out / "int8.safetensors").stat().st_size
    assert qzoo.load(out / "int8.safetensors")(torch.zeros(1, 3, 64, 64)).shape == (1, 4)
    assert "qzoo finetune" in Artifact.read(out / "int8.safetensors").info.recipe["train"]


def test_named_data_and_random_weights(tmp_path: Path) -> None:
    done = finetune(
        "digits", "--model", "shufflenet_v2_x0_5", "--weights", "none", "--size", 16,
        "--epochs", 1, "--batch-size", 256, "--lr", 0.002, "--threads", 1, "--float",
        "--out", tmp_path,
    )  # fmt: skip
    assert done.exit_code == 0, (done.output, done.exception)
    assert "float: top-1" in done.stdout
    assert "int8" not in done.stdout
    assert not (tmp_path / "int8.safetensors").exists()


# The held-out share


def test_a_share_of_every_class_is_held_out_for_good(photos: Path, tmp_path: Path) -> None:
    own = tmp_path / "photos"
    shutil.copytree(photos, own)
    whole, parts = open_data(own), []
    for _ in range(2):
        data = hold_out(open_data(own), 0.2)
        parts.append([data.split(name, None) for name in ("train", "test")])
    train, test = parts[0]
    assert sorted(train.indices + test.indices) == list(range(len(whole.split("all", None))))
    assert [test.targets.count(label) for label in range(4)] == [5, 5, 5, 5]
    assert parts[1][1].indices == test.indices
    assert hold_out(whole, 0.2, seed=1).split("test", None).indices != test.indices
    # A new picture moves at most one other.
    held = {Path(whole.split("all", None).samples[i][0]).name for i in test.indices if test.targets}
    shutil.copy(own / "one" / "0.png", own / "one" / "new.png")
    grown = hold_out(open_data(own), 0.2).split("test", None)
    now = {Path(grown.data.samples[i][0]).name for i in grown.indices}
    assert len(held - now) <= 1


# What can be wrong


def test_what_transfer_refuses(photos: Path, checkpoint: Path, tmp_path: Path) -> None:
    out = ("--output-dir", tmp_path / "run")
    start = ("--checkpoint", checkpoint)
    assert "--data-path FOLDER" in fail("transfer", *TINY, *start, *out)
    assert "--model NAME or" in fail("transfer", *TINY, "--data-path", photos, *out)
    own = tmp_path / "photos"
    shutil.copytree(photos, own)
    data = ("--data-path", own)
    assert "larger than the training split" in fail(
        "transfer", *TINY, *data, *start, *out, "--batch-size", 500
    )
    spoilt = own / "one" / "3.png"
    spoilt.write_bytes(spoilt.read_bytes()[:60])
    assert str(spoilt) in fail("transfer", *TINY, *data, *start, *out)
    spoilt.unlink()
    for extra in list((own / "eight").iterdir())[1:]:
        extra.unlink()
    assert "single picture" in fail("transfer", *TINY, *data, *start, *out)
    (own / "eight" / "0.png").unlink(missing_ok=True)
    for rest in (own / "eight").iterdir():
        rest.unlink()
    assert "eight" in fail("transfer", *TINY, *data, *start, *out)
    for name in ("eight", "one", "seven"):
        shutil.rmtree(own / name)
    assert "at least two classes" in fail("transfer", *TINY, *data, *start, *out)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_what_finetune_refuses(photos: Path, tmp_path: Path) -> None:
    for words, said in (
        ((tmp_path / "nowhere",), "no data set or folder"),
        ((photos, "--model", "resnet19", "--weights", "none"), "resnet18"),
        ((photos, "--checkpoint", tmp_path / "none.safetensors"), "does not exist"),
    ):
        done = finetune(*words, "--size", 32, "--out", tmp_path / "out")
        assert done.exit_code == 2, done.output
        assert said in done.stderr
        assert "Traceback" not in done.output


def test_all_damaged_pictures_are_found_before_training(photos: Path, tmp_path: Path) -> None:
    own = tmp_path / "photos"
    shutil.copytree(photos, own)
    data = hold_out(open_data(own), 0.2)
    assert check_pictures(data, progress=False) == 100
    for number in (1, 2):
        (own / "one" / f"{number}.png").write_text("no picture")
    with pytest.raises(ArgumentError, match="and 1 more"):
        check_pictures(data, progress=False)
