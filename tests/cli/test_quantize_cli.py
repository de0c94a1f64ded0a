"""`qzoo quantize` and `qzoo evaluate`, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import qzoo
from qzoo.artifact.format import Artifact
from qzoo.datasets import Digits
from qzoo.importers.checkpoint import save_float
from qzoo.quantize import ptq
from qzoo.transforms import ImageClassification
from tests.helpers import places, trained
from tests.helpers.commands import run

pytestmark = pytest.mark.usefixtures("own_cache")
ZOO = ("shufflenet_v2_x0_5", "--weights", "DIGITS_X86_V1")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Float weights that know the digits."""
    path = tmp_path_factory.mktemp("float") / "digits.safetensors"
    save_float(trained.digits_model("shufflenet_v2_x0_5"), path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Held-out digits as folders of pictures: train, val, and classes in another order."""
    data = Digits("test")
    for split, start in (("train", 0), ("val", 40)):
        for index in range(start, start + 40):
            picture, label = data[index]
            folder = tmp_path / "photos" / split / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"{index}.png")
    return tmp_path / "photos"


def test_quantize_then_evaluate(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "int8.safetensors"
    options = ("--data", "digits", "--images", 64, "--backend", "x86", "-o", out)
    code, text, _ = run("quantize", checkpoint, *options, "--json")
    row = json.loads(text)
    assert code == 0
    artifact = Artifact.read(out)
    assert (row["model"], row["backend"]) == ("shufflenet_v2_x0_5", "x86")
    assert row["int8_bytes"] == out.stat().st_size < 0.4 * row["float_bytes"]
    assert row["int8"]["n"] == 445
    assert row["int8"]["top1_low"] < row["int8"]["top1"] < row["int8"]["top1_high"]
    assert row["float"]["top1"] > 97 and row["int8"]["top1"] > 97
    assert artifact.info.recipe["calibration_images"] == 64
    metrics = artifact.info.metrics["digits (held-out 25 %)"]
    assert metrics["acc@1"] == row["int8"]["top1"]
    assert (
        artifact.info.recipe["float_metrics"]["digits (held-out 25 %)"]["acc@5"]
        == (row["float"]["top5"])
    )
    # The same numbers as by the library, and measured again as by the other command.
    model = qzoo.importers.checkpoint.load_float(checkpoint)
    preset = ImageClassification.from_dict(qzoo.native.model.model_info(model).transforms)
    twin = ptq(model, Digits("train", preset), images=64, backend="x86", progress=False)
    for name, tensor in qzoo.native.model.from_native(twin).tensors.items():
        assert torch.equal(tensor, artifact.tensors[name]), name
    code, text, _ = run("evaluate", out, "--data", "digits", "--json")
    again = json.loads(text)
    assert code == 0 and again["kind"] == "int8" and again["runtime"] == "torch"
    assert {k: again[k] for k in row["int8"]} == row["int8"]
    code, text, _ = run("evaluate", checkpoint, "--data", "digits", "--json")
    again = json.loads(text)
    assert code == 0 and again["kind"] == "float" and again["backend"] is None
    assert {k: again[k] for k in row["float"]} == row["float"]


def test_the_same_command_writes_the_same_file(checkpoint: Path, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.safetensors", "b.safetensors")]
    options = ("--data", "digits", "--images", 32, "--backend", "onednn", "--no-evaluate")
    for path in files:
        code, text, err = run("quantize", checkpoint, *options, "-o", path)
        assert code == 0 and "top-1" not in text and "Warning" not in err
        assert f"{path}: 1.37 MiB float, 0.40 MiB int8" in text
        assert "shufflenet_v2_x0_5, onednn, calibrated on 32 images" in text
    assert files[0].read_bytes() == files[1].read_bytes()
    run("quantize", checkpoint, *options, "--seed", 1, "-o", files[0])
    assert files[0].read_bytes() != files[1].read_bytes()


def test_folders_flows_and_float_layers(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "int8.safetensors"
    options = ("--keep-float", "fc", "--keep-float", "conv1.*", "--flow", "fx", "-o", out)
    code, text, _ = run("quantize", checkpoint, "--data", photos, *options)
    assert code == 0
    lines = text.splitlines()
    assert "calibrated on 40 images" in lines[0]
    assert "round differently" in lines[1] and "int8" in lines[2]
    assert lines[3].startswith("float: top-1") and lines[4].startswith("int8 : top-1")
    assert "on 40 images" in lines[3]
    layers = Artifact.read(out).layers
    assert [n for n, layer in layers.items() if layer.float] == ["conv1.0", "fc"]
    assert "photos (val)" in Artifact.read(out).info.metrics
    # A folder of classes alone: nothing is held out, so nothing is measured unless asked for.
    data = ("--data", photos / "train", "--recipe", "torchvision", "--images", 16, "-o", out)
    code, text, _ = run("quantize", checkpoint, *data)
    assert code == 0 and "top-1" not in text
    code, text, _ = run("quantize", checkpoint, *data, "--evaluate")
    assert code == 0 and "int8 : top-1" in text
    # Pictures alone can calibrate.
    alone = photos / "train" / "3"
    code, text, _ = run("quantize", checkpoint, "--data", alone, "-o", out)
    assert code == 0 and f"calibrated on {len(list(alone.iterdir()))} images" in text


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime", "auto"])
def test_runtimes_agree(runtime: str) -> None:
    if runtime == "onnxruntime":
        pytest.importorskip("onnxruntime", reason="the onnxruntime extra is not installed")
    options = ("--data", "digits", "--runtime", runtime, "--threads", 1)
    code, text, _ = run("evaluate", *ZOO, *options, "--json")
    row = json.loads(text)
    assert code == 0 and row["n"] == 445
    weights = qzoo.ShuffleNet_V2_X0_5_QuantizedWeights.DIGITS_X86_V1
    published = weights.meta["_metrics"]["digits (held-out 25 %)"]
    assert row["top1"] == pytest.approx(published["acc@1"], abs=0.23)  # one image
    assert row["runtime"] in ("libqzoo", "torch", "onnxruntime", "openvino")
    if runtime != "auto":
        assert row["runtime"] == runtime
    assert row["float_layers"] == []


def test_evaluate_prints_a_line_with_intervals() -> None:
    code, text, _ = run("evaluate", *ZOO, "--data", "digits", "--batch-size", 100)
    assert code == 0
    assert text == (
        "shufflenet_v2_x0_5, int8, torch, digits: top-1 98.88 % (97.40 to 99.52), "
        "top-5 100.00 % (99.14 to 100.00) on 445 images\n"
    )


def test_classes_are_matched_by_name(photos: Path) -> None:
    for digit in "0124567":
        folder = photos / "val" / digit
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    code, text, _ = run("evaluate", *ZOO, "--data", photos / "val", "--json")
    row = json.loads(text)
    count = sum(1 for _ in (photos / "val").rglob("*.png"))
    assert code == 0 and row["n"] == count > 5  # threes, eights and nines
    assert row["top1"] > 80


def test_large_losses_are_told(tmp_path: Path) -> None:
    path, out = tmp_path / "float.safetensors", tmp_path / "int8.safetensors"
    model = trained.imbalance(trained.digits_model("mobilenet_v3_small"), 4)
    save_float(model, path)
    options = ("--data", "digits", "--recipe", "torchvision", "--backend", "qnnpack")
    code, _, err = run("quantize", path, *options, "--images", 32, "-o", out)
    assert code == 0
    assert "Warning: int8 loses" in err and "--keep-float" in err


OUT = ("-o", "@/int8.safetensors")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("quantize", "FLOAT", *OUT), "Missing option '--data'"),
        (("quantize", "FLOAT", "--data", "digist", *OUT), "Did you mean 'digits'"),
        (("quantize", "FLOAT", "--data", "digits", "-o", "@/no/where.safetensors"), "no folder"),
        (("quantize", "@/none.safetensors", "--data", "digits", *OUT), "does not exist"),
        (("quantize", "@/junk.safetensors", "--data", "digits", *OUT), "not a float checkpoint"),
        (("quantize", "resnet81", "--data", "digits", *OUT), "resnet18"),
        (("quantize", "FLOAT", "-w", "DEFAULT", "--data", "digits", *OUT), "drop --weights"),
        (("quantize", "INT8", "--data", "digits", *OUT), "already int8"),
        (("quantize", "FLOAT", "--data", "digits", "--keep-float", "fd", *OUT), "'fd' matches no"),
        (("quantize", "FLOAT", "--data", "digits", "--flow", "fy", *OUT), "'fy'"),
        (("quantize", "FLOAT", "--data", "digits", "--flow", "fx", "--recipe", "best", *OUT),
         "qzoo's own steps"),
        (("quantize", "FLOAT", "--data", "digits", "--images", "0", *OUT), "--images"),
        (("quantize", "FLOAT", "--data", "@/pictures", "--evaluate", *OUT), "without labels"),
        (("quantize", "FLOAT", "--data", "@/empty", *OUT), "neither pictures nor"),
        (("quantize", "FLOAT", "--data", "@/halves", *OUT), "val is missing"),
        (("quantize", "FLOAT", "--data", "@/others", "--evaluate", *OUT), "do not belong together"),
        (("evaluate", "FLOAT", "--data", "@/pictures"), "a folder per class"),
        (("evaluate", "FLOAT", "--data", "digits", "--runtime", "torch"), "for int8 models"),
        (("evaluate", "INT8", "--data", "digits", "--backend", "x86", "--runtime", "torch"),
         "leave it or --runtime out"),
        (("evaluate", "INT8", "--data", "@/others"), "do not belong together"),
        (("evaluate", "INT8", "--data", "@/broken"), "bad.png"),
        (("evaluate", "@", "--data", "digits"), "is a folder"),
        (("evaluate", "INT8", "--data", "digits", "--batch-size", "0"), "--batch-size"),
        (("evaluate", "resnet34", "--data", "digits"), "nobody has published"),
        (("classify", "@/pictures/0.png", "--model", "FLOAT"), "quantize it first"),
    ],
)  # fmt: skip
def test_refusals(arguments: tuple[str, ...], words: str, checkpoint: Path, tmp_path: Path) -> None:
    int8 = places.INT8
    (tmp_path / "junk.safetensors").write_bytes(b"no weights")
    grey = Image.fromarray(np.full((40, 40), 90, dtype=np.uint8))
    for place in ("pictures", "others/cats", "others/dogs", "halves/train/0", "broken/3"):
        (tmp_path / place).mkdir(parents=True)
        grey.save(tmp_path / place / "0.png")
    (tmp_path / "broken" / "3" / "bad.png").write_text("no picture")
    (tmp_path / "empty").mkdir()
    names = {"FLOAT": str(checkpoint), "INT8": str(int8)}
    filled = [names.get(a, a.replace("@", str(tmp_path))) for a in arguments]
    code, out, err = run(*filled)
    assert code == 2 and out == "" and words in err and "Traceback" not in err
    assert not (tmp_path / "int8.safetensors").exists()
