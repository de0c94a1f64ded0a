"""What the endings of files' names decide, and what is kept from one format to the next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import qzoo
from qzoo.artifact.format import Artifact
from qzoo.cli._endings import ENDINGS, check_ending, format_of
from qzoo.cli.export import FORMATS
from qzoo.importers.checkpoint import load_float, save_float
from qzoo.quantize import ptq
from qzoo.sharing.convert import read_model
from tests.helpers import places
from tests.helpers.commands import run

INT8 = str(places.INT8)
CLASSES = [f"digit {i}" for i in range(10)]


@pytest.fixture(autouse=True)
def _here(own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_format_has_an_ending_of_its_own() -> None:
    usual = [endings[0] for endings in ENDINGS.values()]
    assert len(set(usual)) == len(usual)
    assert {row.suffix for row in FORMATS.values()} < set(usual)


DATA = ("--data", "digits")


@pytest.mark.parametrize(
    "arguments",
    [
        ("quantize", "resnet18", *DATA, "-o", "m.onnx"),
        ("quantize", "resnet18", *DATA, "-o", "m.pth"),
        ("quantize", "resnet18", *DATA, "-o", "m.tflite"),
        ("tune", "resnet18", *DATA, "-o", "m.ONNX"),
        ("convert", INT8, "m.onnx"),
        ("convert", INT8, "m.pt2"),
        ("convert", INT8, "m.bin"),
        ("convert", INT8, "m.safetensors", "--to", "torchvision"),
        ("convert", INT8, "m.pth", "--to", "artifact"),
        ("export", INT8, "--to", "onnx", "-o", "m.pt"),
        ("export", INT8, "--to", "openvino", "-o", "m.onnx"),
        ("export", INT8, "--to", "executorch", "-o", "m.pt2"),
        ("export", INT8, "--to", "torch-export", "-o", "m.aoti.pt2"),
        ("export", INT8, "--to", "aoti", "-o", "m.pte"),
        ("export", INT8, "-o", "m.safetensors"),
        ("export", INT8, "-o", "model"),
    ],
)
def test_endings_that_contradict_are_refused(arguments: tuple[str, ...], tmp_path: Path) -> None:
    code, out, err = run(*arguments)
    assert code == 2 and out == "" and "Traceback" not in err
    name = arguments[arguments.index("-o") + 1] if "-o" in arguments else arguments[2]
    assert name in err
    assert not [path for path in tmp_path.iterdir() if path.name != "cache"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("m.safetensors", "artifact"), ("m.PTH", "torchvision"), ("m.pt", "torchvision")],
)
def test_convert_writes_what_the_ending_says(name: str, kind: str) -> None:
    for source in (INT8, "first.pth"):
        code, out, err = run("convert", source, name, "--json")
        assert code == 0, err
        row = json.loads(out)
        assert (row["format"], row["backend"]) == (kind, "x86")
        assert row["bytes"] == Path(name).stat().st_size
        assert (Path(name).read_bytes()[:2] == b"PK") == (kind == "torchvision")
        run("convert", INT8, "first.pth")


def test_names_of_pytorchs_two_formats() -> None:
    assert format_of(Path("m.pt2")) == "torch-export" and format_of(Path("m.aoti.pt2")) == "aoti"
    check_ending(Path("m.pt2"), "aoti")  # what PyTorch calls it


@pytest.mark.parametrize(("name", "kind"), [("m.onnx", "onnx"), ("sub.dir/m.xml", "openvino")])
def test_export_takes_the_format_from_the_ending(name: str, kind: str) -> None:
    Path("sub.dir").mkdir()
    code, out, err = run("export", INT8, "-o", name, "--size", 32, "--json")
    assert code == 0, err
    row = json.loads(out)
    assert row["format"] == kind and row["files"][0]["file"] == name
    assert all(f["bytes"] == Path(f["file"]).stat().st_size for f in row["files"])


@pytest.mark.parametrize("backend", qzoo.BACKENDS)
def test_nothing_is_lost_by_way_of_torchvisions_state_dict(backend: str) -> None:
    torch.manual_seed(0)
    model: Any = qzoo.shufflenet_v2_x0_5(num_classes=10).eval()
    model.classes = CLASSES
    model.transforms = qzoo.ShuffleNet_V2_X0_5_QuantizedWeights.DIGITS_X86_V1.transforms
    images = torch.randn(4, 3, 64, 64)
    int8 = ptq(model, images, backend=backend, recipe="fast", progress=False)
    qzoo.save(int8, "mine.safetensors", metrics={"digits": {"acc@1": 99.0}})
    assert run("convert", "mine.safetensors", "mine.pth")[0] == 0
    theirs = torch.load("mine.pth", weights_only=False)
    assert theirs.keys() == int8.state_dict().keys()
    assert run("convert", "mine.pth", "again.safetensors")[0] == 0
    assert Path("again.safetensors").read_bytes() == Path("mine.safetensors").read_bytes()
    assert read_model("mine.pth", backend="fbgemm").info.backend == "fbgemm"


def test_a_float_models_names_survive_too() -> None:
    model = qzoo.resnet18(num_classes=10)
    save_float(model, "mine.safetensors", classes=CLASSES)
    assert run("convert", "mine.safetensors", "mine.pth")[0] == 0
    assert load_float("mine.pth").classes == CLASSES
    torch.load("mine.pth", weights_only=True)


@pytest.mark.parametrize(
    "note", ["{", "[]", '{"architecture": 3}', '{"architecture": "shufflenet_v2_x0_5", "odd": 1}']
)
def test_a_damaged_note_is_one_sentence(note: str) -> None:
    native = qzoo.load(INT8)
    state: Any = native.state_dict()
    state._metadata["qzoo"] = {"info": note}
    torch.save(state, "mine.pth")
    with pytest.raises(qzoo.QzooError, match=r"note|wrong type"):
        read_model("mine.pth")
    state._metadata["qzoo"] = {"info": 3}  # not ours
    torch.save(state, "mine.pth")
    assert isinstance(read_model("mine.pth"), Artifact)
