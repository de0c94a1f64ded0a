"""Folders of runs: a new one for a new run, the right one to go on with, and none replaced."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image

from qzoo.artifact.format import Artifact
from qzoo.errors import ArgumentError
from qzoo.importers.checkpoint import load_float
from qzoo.training import Ranks, check_run, find_run, new_folder, open_run, transfer
from qzoo.training.options import OutputOptions
from qzoo.training.runs import clear
from tests.helpers.commands import invoke

ALONE = Ranks(torch.device("cpu"))
SETTINGS = {"lr": 0.1, "data_path": "photos", "seed": 0}


def a_run(folder: Path, *, end: bool = True, **settings: Any) -> Path:
    """Writes what a run leaves: a checkpoint and, at its end, a float model."""
    folder.mkdir(parents=True)
    state = {
        "settings": {**SETTINGS, **settings}, "threads": 1, "data_sha256": "", "epoch": 0,
        "step": 1, "sums": [0.0, 0.0, 0.0], "seconds": 0.0, "random": [{}], "log": [],
        "model": {}, "optimizer": {"state": {}, "param_groups": []}, "schedule": {}, "scaler": {},
        "ema": None,
    }  # fmt: skip
    torch.save(state, folder / "checkpoint.pth")
    if end:
        (folder / "model.safetensors").write_bytes(b"")
    return folder


def test_a_new_run_gets_the_next_number(tmp_path: Path) -> None:
    base = tmp_path / "photos-resnet18"
    assert new_folder(base) == base
    base.mkdir()
    assert new_folder(base) == base, "an empty folder is free"
    (base / "anything").write_text("")
    assert new_folder(base).name == "photos-resnet18-2"
    a_run(tmp_path / "photos-resnet18-9")
    a_run(tmp_path / "photos-resnet18-x")
    a_run(tmp_path / "photos-resnet18-10-2")
    assert new_folder(base).name == "photos-resnet18-10"
    (tmp_path / "photos-resnet18-10").write_text("a file")
    assert new_folder(base).name == "photos-resnet18-11"


def test_the_run_with_the_same_options_goes_on(tmp_path: Path) -> None:
    base = tmp_path / "photos-resnet18"
    last = "model.safetensors"
    assert find_run(base, SETTINGS, last) is None
    first = a_run(base, end=False, lr=0.1)
    second = a_run(tmp_path / "photos-resnet18-2", lr=0.2)
    assert find_run(base, SETTINGS, last) == first
    assert find_run(base, {**SETTINGS, "lr": 0.2}, last) == second
    third = a_run(tmp_path / "photos-resnet18-3", lr=0.1)
    assert find_run(base, SETTINGS, last) == first, "the one that was interrupted"
    (first / last).write_bytes(b"")
    assert find_run(base, SETTINGS, last) == third, "the newest of those at their end"
    with pytest.raises(ArgumentError, match=r"photos-resnet18-3 has another seed"):
        find_run(base, {**SETTINGS, "seed": 5}, last)
    (tmp_path / "photos-resnet18-4").mkdir()
    (tmp_path / "photos-resnet18-4" / "checkpoint.pth").write_text("damaged")
    assert find_run(base, SETTINGS, last) == third


def _options(output: Path, **more: Any) -> OutputOptions:
    return OutputOptions(output_dir=str(output), **more)


@pytest.mark.parametrize(
    "left",
    ["checkpoint.pth", "model.safetensors", "int8.safetensors", "ptq.safetensors", "log.csv",
     "split.csv", "qat/checkpoint.pth", "tensorboard/events"],
)  # fmt: skip
def test_what_any_run_left_is_not_replaced(left: str, tmp_path: Path) -> None:
    path = tmp_path / left
    path.parent.mkdir(exist_ok=True)
    path.write_text("earlier")
    with pytest.raises(ArgumentError, match=r"holds another run .*--overwrite"):
        check_run(_options(tmp_path), ALONE)
    elsewhere = a_run(tmp_path / "other") / "checkpoint.pth"
    with pytest.raises(ArgumentError, match="holds another run"):
        check_run(_options(tmp_path, resume=str(elsewhere)), ALONE)
    check_run(_options(tmp_path, test_only=True), ALONE)
    check_run(_options(tmp_path, overwrite=True), ALONE)
    open_run(_options(tmp_path), ALONE)
    assert path.read_text() == "earlier"
    open_run(_options(tmp_path, overwrite=True), ALONE)
    assert not path.exists()


def test_a_run_goes_on_in_its_own_folder(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    for resume in ("auto", str(run / "checkpoint.pth")):
        options = _options(run, resume=resume, overwrite=True)
        check_run(options.changed(overwrite=False), ALONE)
        open_run(options, ALONE)
        assert (run / "checkpoint.pth").exists(), "to go on comes before to replace"
    # Stopped before the first checkpoint: there is nothing to lose.
    started = tmp_path / "started"
    started.mkdir()
    (started / "ptq.safetensors").write_text("")
    (started / "split.csv").write_text("")
    check_run(_options(started, resume="auto"), ALONE)


def test_clearing_follows_no_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "qat").symlink_to(outside)
    clear(tmp_path / "run")
    assert not (tmp_path / "run" / "qat").exists()
    assert (outside / "kept").read_text() == "mine"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of five pictures: bright and dark."""
    rng = np.random.default_rng(0)
    for name, low in (("dark", 0), ("bright", 190)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(5):
            pixels = low + rng.integers(0, 60, (40, 40, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def finetune(*options: object) -> Result:
    common = ("--model", "shufflenet_v2_x0_5", "--weights", "none", "--size", 32, "--epochs", 1,
              "--threads", 1, "--augment", "none")  # fmt: skip
    return invoke("finetune", *options, *common)


def test_finetune_twice_makes_two_models(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base = "photos-shufflenet_v2_x0_5"
    first = finetune("photos", "--float", "--seed", 1)
    assert first.exit_code == 0, first.output
    model = (tmp_path / base / "model.safetensors").read_bytes()
    second = finetune("photos/", "--float", "--seed", 2, "--json")
    assert second.exit_code == 0, second.output
    assert f"this one goes to {base}-2" in second.stderr
    assert json.loads(second.stdout)["float"]["file"] == f"{base}-2/model.safetensors"
    assert (tmp_path / base / "model.safetensors").read_bytes() == model
    # --resume goes on with the run that has these options, and says so where there is none.
    again = finetune("photos", "--float", "--seed", 1, "--resume", "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["float"]["file"] == f"{base}/model.safetensors"
    model = (tmp_path / base / "model.safetensors").read_bytes()
    none = finetune("photos", "--float", "--seed", 3, "--resume")
    assert none.exit_code == 2 and "has another seed" in none.stderr
    # A folder that is named is not replaced unless that is asked for.
    named = finetune("photos", "--float", "--seed", 3, "--out", base)
    assert named.exit_code == 2 and "--overwrite" in named.stderr and named.stdout == ""
    assert (tmp_path / base / "model.safetensors").read_bytes() == model
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos", base, f"{base}-2"]


def test_an_int8_model_of_other_float_weights_does_not_stay(photos: Path, tmp_path: Path) -> None:
    """A run that goes on with more epochs gets another float model, so the rest is made anew."""
    from qzoo.training import TransferOptions, set_up, transfer

    def run(epochs: int, resume: str | None) -> None:
        options = TransferOptions().changed(
            data_path=str(photos), output_dir=str(tmp_path / "run"), resume=resume, epochs=epochs,
            train_crop_size=32, augment="none", batch_size=4, threads=1, workers=0, lr=0.01,
            model="shufflenet_v2_x0_5", weights="none", head_epochs=0, head_lr_factor=1.0,
            quantize="qat", qat_epochs=1, recipe="fast", backend="x86",
        )  # fmt: skip
        set_up(options.train, ALONE)
        transfer(options, ALONE, "transfer.py", "command")

    out = tmp_path / "run"
    run(1, None)
    old = torch.load(out / "qat" / "checkpoint.pth", weights_only=True)["settings"]
    run(2, "auto")
    new = torch.load(out / "qat" / "checkpoint.pth", weights_only=True)["settings"]
    assert new["float_sha256"] != old["float_sha256"]
    assert new["ptq_sha256"] != old["ptq_sha256"], "of the float model as it is now"
    assert load_float(out / "model.safetensors") and Artifact.read(out / "int8.safetensors")


def test_a_float_model_takes_a_stale_int8_model_away(tmp_path: Path) -> None:
    module = sys.modules[transfer.__module__]
    import qzoo

    one, two = (qzoo.shufflenet_v2_x0_5(num_classes=2) for _ in range(2))
    module._save_float(one, tmp_path)
    int8 = tmp_path / "int8.safetensors"
    int8.write_text("of one")
    module._save_float(one, tmp_path)
    assert int8.exists()
    module._save_float(two, tmp_path)
    assert not int8.exists()
