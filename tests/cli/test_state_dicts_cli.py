"""Float state dicts, as `torch.save` writes them, given to every command that takes such."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import qzoo
from qzoo.native.model import model_info
from tests.helpers import zoo
from tests.helpers.commands import run

NAME = "shufflenet_v2_x0_5"


@pytest.fixture(autouse=True)
def _own_place(own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QZOO_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return zoo.vary(torchvision.models.shufflenet_v2_x0_5(num_classes=2)).state_dict()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of three pictures."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    pixels = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for index in range(3):
            picture = Image.fromarray(pixels.integers(0, 256, (64, 64, 3), dtype=np.uint8))
            picture.save(folder / label / f"{index}.png")
    return folder


def test_quantize_and_evaluate_take_a_state_dict(
    state: dict[str, torch.Tensor], photos: Path
) -> None:
    torch.save(state, "mine.pth")
    code, text, err = run("quantize", "mine.pth", photos, "-o", "int8.safetensors", "--images", 6)
    assert code == 0 and "does not say how its pictures are prepared" in err, err
    assert "resized to 256, cut to 224 pixels" in err and NAME in text
    info = model_info(qzoo.load("int8.safetensors"))
    assert info.builder_kwargs == {"num_classes": 2} and info.transforms is not None
    code, text, err = run("evaluate", "mine.pth", photos, "--json", "--float")
    row = json.loads(text)
    assert code == 0 and (row["kind"], row["n"]) == ("float", 6), err


@pytest.mark.extended
def test_analyze_and_tune_take_a_state_dict(state: dict[str, torch.Tensor], photos: Path) -> None:
    torch.save(state, "mine.pth")
    assert run("quantize", "mine.pth", photos, "-o", "int8.safetensors", "--images", 4)[0] == 0
    few = ("--images", 4, "--sensitivity-images", 1, "--json")
    code, text, err = run("analyze", "mine.pth", "int8.safetensors", photos, *few)
    assert code == 0 and json.loads(text)["architecture"] == NAME, err
    options = ("--max-drop", 100, "--images", 4, "-o", "tuned.safetensors", "--json")
    code, text, err = run("tune", "mine.pth", photos, *options)
    assert code == 0 and json.loads(text)["met"], err


def test_finetune_starts_from_a_state_dict(state: dict[str, torch.Tensor], photos: Path) -> None:
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, "mine.pth")
    common = (photos, "--epochs", 1, "--size", 32, "--float", "--threads", 1, "--device", "cpu")
    for number, options in enumerate(
        (("--checkpoint", "mine.pth", "-m", NAME), ("-m", "mine.pth"))
    ):
        code, _, err = run("finetune", *common, *options, "-o", f"run{number}")
        assert code == 0, err
        info = model_info(qzoo.load_float(f"run{number}"))
        assert (info.architecture, info.classes) == (NAME, ["cat", "dog"])
    code, _, err = run("finetune", *common, "--checkpoint", "mine.pth", "-m", "resnet18")
    assert code == 2 and "does not fit resnet18" in err


def test_conversion_says_what_it_is(state: dict[str, torch.Tensor], photos: Path) -> None:
    torch.save({"ema": {"module": state}, "epoch": 3}, "mine.ckpt")
    Path("names.txt").write_text("cat\ndog\n")
    like = "ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1"
    command = ("convert", "mine.ckpt", "mine.safetensors", "--classes", "names.txt")
    code, text, err = run(*command, "--like", like)
    assert code == 0 and text.startswith(f"mine.safetensors: {NAME}, float, 2 classes"), err
    info = model_info(qzoo.load_float("mine.safetensors"))
    assert info.classes == ["cat", "dog"] and info.transforms is not None
    code, _, err = run("quantize", "mine.safetensors", photos, "-o", "q.safetensors")
    assert code == 0 and "pictures are prepared" not in err
    assert model_info(qzoo.load("q.safetensors")).classes == ["cat", "dog"]
    code, _, err = run("convert", "mine.safetensors", "back.pth")
    assert code == 0, err
    back = torch.load("back.pth", weights_only=True)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], value) for key, value in state.items())
    code, text, err = run("verify", "mine.ckpt", "mine.safetensors", "back.pth")
    assert code == 0 and text.count(f"{NAME}, float, 2 classes") == 3, err


def test_what_a_state_dict_does_not_tell_can_be_said(
    state: dict[str, torch.Tensor], photos: Path
) -> None:
    other = {key: torch.zeros_like(value) for key, value in state.items()}
    torch.save({"model": other, "best": state}, "mine.pth")
    code, _, err = run("evaluate", "mine.pth", photos, "--part", "best", "--model", NAME)
    assert code == 0, err
    assert run("evaluate", "-m", "mine.pth", photos, "--arch", NAME)[0] == 0
    code, _, err = run("evaluate", "mine.pth", photos, "--arch", NAME, "--model", NAME)
    assert code == 2 and "not both" in err
    code, _, err = run("quantize", "mine.pth", photos, "--arch", "resnet18", "-o", "x.safetensors")
    assert code == 2 and "does not fit resnet18" in err
    code, _, err = run("quantize", NAME, photos, "--arch", NAME, "-o", "x.safetensors")
    assert code == 2 and "drop --arch" in err
    code, _, err = run("quantize", "mine.pth", photos, "--part", "gone", "-o", "x.safetensors")
    assert code == 2 and "holds no dict under 'gone'; it has model, best" in err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"conv1.0.weight": torch.ones(24, 1, 3, 3)}, "One channel (gray) is not supported"),
        ({"conv5.0.weight": torch.ones(7, 192, 1, 1)}, "name the model with --model"),
        ({"fc.bias": torch.ones(3)}, "'fc.bias' has the shape (3,)"),
    ],
)
def test_one_sentence_and_nothing_written(
    change: dict[str, Any], words: str, state: dict[str, torch.Tensor], photos: Path
) -> None:
    torch.save({**state, **change}, "mine.pth")
    before = sorted(Path().rglob("*"))
    for command in (
        ("quantize", "mine.pth", photos, "-o", "x.safetensors"),
        ("evaluate", "--float", "mine.pth", photos),
        ("tune", "mine.pth", photos, "-o", "x.safetensors"),
        ("analyze", "mine.pth", "mine.pth", photos),
        ("convert", "mine.pth", "x.safetensors"),
        ("finetune", photos, "--checkpoint", "mine.pth", "--device", "cpu", "-o", "run"),
    ):
        code, _, err = run(*command)
        assert code == 2 and words in err and err.count("\n") == 1, (command, err)
    assert sorted(Path().rglob("*")) == before
