"""`qzoo benchmark` and `qzoo export`, and the OpenVINO files that the latter writes."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import qzoo
from qzoo.cli.export import FORMATS
from qzoo.export.openvino import export_openvino
from qzoo.native.model import from_native
from qzoo.transforms import ImageClassification
from tests.helpers.commands import run
from tests.helpers.places import DIGITS

pytestmark = pytest.mark.usefixtures("own_cache")
MODEL = ("shufflenet_v2_x0_5", "--weights", "DIGITS_X86_V1")


def test_benchmark_json() -> None:
    options = ("--size", 32, "--rounds", 2, "--no-memory", "--runtimes", "torch,onnxruntime,auto")
    code, out, _ = run("benchmark", *MODEL, *options, "--batch", "1,3", "--json")
    rows = json.loads(out)
    assert code == 0
    assert [(r["runtime"], r["batch"]) for r in rows] == [
        (name, batch) for batch in (1, 3) for name in ("torch", "onnxruntime", "auto")
    ]
    for row in rows:
        assert 0 < row["low_ms"] <= row["median_ms"] <= row["high_ms"] and row["rounds"] == 2
        assert row["float_layers"] == "" and row["height"] == 32
        assert (row["peak_mib"], row["model_mib"]) == (None, None)
    assert rows[2]["executes"].startswith("auto: ") and rows[0]["executes"].startswith("torch (")
    assert any(row["fastest"] for row in rows[:3])


@pytest.mark.extended
def test_benchmark_csv_carries_the_environment_and_memory() -> None:
    options = ("--size", 32, "--rounds", 1, "--runtimes", "onnxruntime", "--csv")
    code, out, _ = run("benchmark", *MODEL, *options)
    (row,) = csv.DictReader(io.StringIO(out))
    assert code == 0
    assert torch.__version__.startswith(row["torch"]) and row["torch"] and row["cpu"]
    assert 0 < float(row["model_mib"]) < float(row["peak_mib"])


def test_benchmark_table_of_random_weights() -> None:
    options = ("--random", "--size", 32, "--rounds", 1, "--no-memory", "--runtimes", "torch")
    code, out, err = run("benchmark", "mobilenet_v3_small", *options)
    assert code == 0 and err == ""
    assert "fastest" in out and "mobilenet_v3_small" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("benchmark", *MODEL, "--runtimes", "opnvino"), "Did you mean 'openvino'"),
        (("benchmark", "resnet1", "--random"), "Unknown model"),
        (("benchmark", *MODEL, "--threads", "0"), "above 0"),
        (("benchmark", *MODEL, "--batch", "one"), "whole numbers"),
        (("benchmark", *MODEL, "--random"), "takes no --weights"),
        (("benchmark", *MODEL, "--json", "--csv"), "exclude"),
        (("export", *MODEL, "--to", "tflite"), "tflite"),
        (("export", *MODEL, "--to", "openvino", "-o", "/nowhere/at/all.xml"), "/nowhere/at"),
        (("export", *MODEL, "--to", "openvino", "-o", "model.bin"), ".xml"),
    ],
)
def test_refusals(arguments: tuple[object, ...], words: str) -> None:
    code, out, err = run(*arguments)
    assert code == 2 and out == "" and words in err and "Traceback" not in err


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_export_names_the_file_after_the_model(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("export", *MODEL, "--to", target, "--batch", 2)
    written = {path.name for path in tmp_path.glob("shufflenet*")}
    assert code == 0
    assert f"shufflenet_v2_x0_5{FORMATS[target].suffix}" in written
    assert all(name in out for name in written)


def test_openvino_files_take_pictures_as_they_are(tmp_path: Path) -> None:
    import openvino

    native = qzoo.shufflenet_v2_x0_5(weights="DIGITS_X86_V1", quantize=True)
    artifact = from_native(native)
    preset = ImageClassification.from_dict(artifact.info.transforms or {})
    pictures = [Image.open(file).convert("RGB").resize((64, 64)) for file in DIGITS]
    export_openvino(native, tmp_path / "plain.xml")
    export_openvino(artifact, tmp_path / "pixels.xml", preprocess=True, batch_size=len(DIGITS))
    core, config = openvino.Core(), {"INFERENCE_PRECISION_HINT": "f32"}
    x = torch.stack([preset(picture) for picture in pictures])
    with torch.no_grad():
        expected = native(x).argmax(1).numpy()
    plain = core.read_model(tmp_path / "plain.xml")
    assert (core.compile_model(plain, "CPU", config)([x.numpy()])[0].argmax(1) == expected).all()
    pixels = core.read_model(tmp_path / "pixels.xml")
    array = np.stack([np.asarray(picture) for picture in pictures])
    assert (core.compile_model(pixels, "CPU", config)([array])[0].argmax(1) == expected).all()
    assert json.loads(plain.get_rt_info(["qzoo", "classes"]).value) == list("0123456789")
    size = sum((tmp_path / f"plain{suffix}").stat().st_size for suffix in (".xml", ".bin"))
    assert size < 2e6
    assert {path.name for path in tmp_path.glob("p*")} == {
        f"{name}.{suffix}" for name in ("plain", "pixels") for suffix in ("xml", "bin")
    }
