"""What a MODEL argument may be, for every command that takes one, and for the API."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import qzoo
from qzoo.importers.checkpoint import load_float, save_float
from tests.helpers.commands import run
from tests.helpers.places import DIGITS, INT8

PICTURE = str(DIGITS[0])


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An int8 and a float model, in every place where qzoo writes one."""
    root = tmp_path_factory.mktemp("places")
    shutil.copy(INT8, root / "mine.safetensors")
    native = qzoo.load(INT8)
    native.save_pretrained(root / "shared")
    model = qzoo.shufflenet_v2_x0_5(num_classes=10)
    save_float(
        model, root / "float.safetensors", classes=native.classes, transforms=native.transforms
    )
    for name in ("run", "only-float"):
        (root / name).mkdir()
        shutil.copy(root / "float.safetensors", root / name / "model.safetensors")
    shutil.copy(INT8, root / "run" / "int8.safetensors")
    (root / "nothing").mkdir()
    assert run("convert", root / "mine.safetensors", root / "int8.pth")[0] == 0
    return root


@pytest.fixture(autouse=True)
def _here(places: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(places)


MODELS = ("mine.safetensors", "int8.pth", "shared", "shared/", "run", "./run")


@pytest.mark.parametrize("model", MODELS)
def test_commands_take_an_int8_model_in_every_place(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = run("classify", PICTURE, "-m", model, "-k", 1, "--json")
    assert code == 0, err
    assert json.loads(out)[0]["predictions"][0]["name"] == "0"
    code, out, err = run("info", model, "--json")
    facts = json.loads(out)
    assert code == 0 and (facts["kind"], facts["architecture"]) == ("int8", "shufflenet_v2_x0_5")
    assert facts["classes"] == list("0123456789") and facts["backend"] == "x86"
    assert facts["bytes"] == Path(facts["file"]).stat().st_size
    code, out, err = run("info", model)
    assert code == 0 and "64x64 pixels" in out and "0, 1, 2" in out
    code, out, err = run("verify", model, "--json")
    assert code == 0 and all(row["ok"] for row in json.loads(out)), err
    options = ("--size", 32, "--rounds", 1, "--no-memory", "--runtime", "torch", "--json")
    code, out, err = run("benchmark", model, *options)
    assert code == 0 and json.loads(out)[0]["runtime"] == "torch", err
    pushed: list[Any] = []

    def push(*args: Any, **_: Any) -> str:
        pushed.append(args)
        return "url"

    monkeypatch.setattr("qzoo.sharing.push_to_hub", push)
    code, out, err = run("push", model, "org/name", "--json")
    assert code == 0 and json.loads(out) == {"repo": "org/name", "commit": "url"}, err
    assert qzoo.as_artifact(pushed[0][0]).info.architecture == "shufflenet_v2_x0_5"


@pytest.mark.parametrize("model", ["mine.safetensors", "shared", "run"])
def test_slower_commands_take_them_too(model: str, tmp_path: Path) -> None:
    code, out, err = run("evaluate", model, "digits", "--json")
    assert code == 0 and json.loads(out)["top1"] > 98, err
    code, out, err = run("export", model, "-o", tmp_path / "m.onnx", "--size", 32)
    assert code == 0 and (tmp_path / "m.onnx").exists(), err
    code, out, err = run("convert", model, tmp_path / "m.pth")
    assert code == 0 and (tmp_path / "m.pth").exists(), err


@pytest.mark.parametrize("model", ["float.safetensors", "run", "only-float"])
def test_commands_take_a_float_model_in_every_place(model: str, tmp_path: Path) -> None:
    code, out, err = run("evaluate", model, "--float", "--data", "digits", "--json")
    assert code == 0 and json.loads(out)["kind"] == "float", err
    options = ("--images", 8, "--recipe", "fast", "--no-evaluate", "-o", tmp_path / "q.safetensors")
    code, out, err = run("quantize", model, "digits", *options)
    assert code == 0 and (tmp_path / "q.safetensors").exists(), err
    assert load_float(model).classes == list("0123456789")


def test_info_of_float_models() -> None:
    code, out, _ = run("info", "only-float", "--json")
    facts = json.loads(out)
    assert code == 0 and facts["kind"] == "float" and facts["backend"] is None
    assert facts["parameters"] == sum(
        p.numel() for p in load_float("float.safetensors").parameters()
    )
    assert run("info", "float.safetensors")[1].startswith(
        "float.safetensors: shufflenet_v2_x0_5, float"
    )


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("classify", PICTURE, "-m", "nothing"), "holds no model.safetensors or int8.safetensors"),
        (("classify", PICTURE, "-m", "only-float"), "quantize it first"),
        (("export", "only-float", "--to", "onnx"), "quantize it first"),
        (("quantize", "shared", "digits", "-o", "q.safetensors"), "only a model in int8"),
        (("quantize", "mine.safetensors", "digits", "-o", "q.safetensors"), "already int8"),
        (("info", "no/where"), "hf://no/where"),
        (("info", "gone.safetensors"), "does not exist"),
        (("info", "resnet5"), "Did you mean 'resnet50'"),
        (("push", "gone.pth", "org/name"), "does not exist"),
        (("evaluate", "run", "digits", "-w", "DEFAULT"), "drop --weights"),
        (("info", "hf://org/name"), "QZOO_OFFLINE"),
    ],
)
def test_refusals(command: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QZOO_OFFLINE", "1")
    code, out, err = run(*command)
    assert code == 2 and out == "" and words in err and err.count("\n") == 1
    assert not Path("q.safetensors").exists()


def test_the_api_takes_folders() -> None:
    for folder in ("shared", "run"):
        assert qzoo.load(folder).classes == list("0123456789")
        assert qzoo.compile(folder, "torch").classes == list("0123456789")
        assert qzoo.from_pretrained(folder).classes == list("0123456789")
    with pytest.raises(qzoo.ArtifactError, match="quantize it first"):
        qzoo.load("only-float")


def test_a_folder_does_not_hide_a_model_of_the_zoo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("resnet18").mkdir()
    assert run("info", "resnet18")[1].startswith("resnet18: 11,689,512 parameters")
    assert "is a folder" in run("info", "resnet18/")[2]
