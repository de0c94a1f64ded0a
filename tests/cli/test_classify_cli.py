"""The commands that people meet first, as they are run: in a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import qzoo
from qzoo.classify import classify, probabilities
from qzoo.cli.classify import _about_runtimes, _Measured, _remarks
from qzoo.runtimes.api import RUNTIMES
from tests.helpers.commands import run
from tests.helpers.places import DIGITS, INT8

MODEL = ("--model", "shufflenet_v2_x0_5", "--weights", "DIGITS_X86_V1")


def assert_refused(result: tuple[int, str, str], *words: str) -> None:
    code, out, err = result
    assert code == 2
    assert out == ""
    assert "Traceback" not in err
    assert err.count("\n") <= 1, err
    for word in words:
        assert word in err


def test_demo_in_a_fresh_process_without_network(tmp_path: Path) -> None:
    env = {**os.environ, "QZOO_OFFLINE": "1", "QZOO_HOME": str(tmp_path / "cache")}
    command = [str(Path(sys.executable).parent / "qzoo"), "demo"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for digit in DIGITS:
        assert digit.name in done.stdout
    assert "float32" in done.stdout and "int8" in done.stdout
    assert not (tmp_path / "cache").exists()


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    code, out, _ = run("demo", "--json")
    assert code == 0
    return json.loads(out)


def test_demo_json_holds_measured_figures(report: dict[str, Any]) -> None:
    assert sum(p["label"] == p["prediction"] for p in report["pictures"]) >= len(DIGITS) - 1
    float32, int8 = report["models"]
    assert int8["file_kb"] < 0.4 * float32["file_kb"]
    assert all(row["latency_224_ms"] > row["latency_64_ms"] > 0 for row in (float32, int8))


def test_demo_names_the_fastest_runtime_that_is_there(
    report: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    float32, int8 = report["models"]
    totals = {name: sum(found.values()) for name, found in report["runtimes"].items()}
    assert float32["runtime"] == "torch" and int8["runtime"] == min(totals, key=totals.__getitem__)
    quick = {name for name in qzoo.available_runtimes() if not RUNTIMES[name].slow}
    assert set(totals) == quick
    monkeypatch.setattr("qzoo.runtimes.api.available_runtimes", lambda: ["torch"])
    code, out, _ = run("demo")
    assert code == 0
    assert "the only runtime that is installed" in out
    assert 'pip install "qzoo[onnxruntime,openvino]"' in out
    said = _about_runtimes("openvino", ["torch", "openvino"])
    assert "int8 ran on openvino, the fastest here" in said and "qzoo[onnxruntime]" in said


@pytest.mark.parametrize(
    ("int8", "words"),
    [((0.5, 2.0), None), ((1.5, 2.0), "at 64x64 pixels: "), ((0.5, 9.0), "at 224x224 pixels: "),
     ((1.5, 9.0), "at 64x64 pixels and 224x224 pixels: ")],
)  # fmt: skip
@pytest.mark.parametrize("vnni", [True, False])
def test_demo_never_shows_int8_slower_without_saying_why(
    int8: tuple[float, float], words: str | None, vnni: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qzoo._core.cpu.has_vnni", lambda: vnni)
    keys = ("latency_64_ms", "latency_224_ms")
    latencies = {"openvino": dict(zip(keys, int8, strict=True))}
    float32 = dict(zip(keys, (1.0, 3.0), strict=True))
    model: Any = None
    remarks = _remarks(_Measured(latencies, float32, 1, "", model))
    assert remarks[0].startswith("int8 ran on openvino, the only runtime that is installed here")
    if words is None:
        assert len(remarks) == 1
    else:
        assert words in remarks[1] and ("VNNI" in remarks[1]) != vnni
    alone = _remarks(_Measured(latencies, None, 0, "it needs what is not here.", model))
    assert alone[1:] == ["There is no float row: it needs what is not here."]


def test_classify_names_the_digit() -> None:
    code, out, _ = run("classify", *DIGITS[:3], *MODEL, "--topk", 2, "--json")
    assert code == 0
    rows = json.loads(out)
    assert [r["file"] for r in rows] == [str(d) for d in DIGITS[:3]]
    for row, digit in zip(rows, DIGITS, strict=False):
        first, second = row["predictions"]
        assert first["probability"] >= second["probability"]
        assert first["name"] == digit.name.split("-")[1]


def test_classify_agrees_with_the_api_on_an_artifact(tmp_path: Path) -> None:
    model = qzoo.shufflenet_v2_x0_5(weights="DIGITS_X86_V1", quantize=True)
    path = tmp_path / "mine.safetensors"
    qzoo.save(model, path)
    compiled = qzoo.compile(path, "onnxruntime")
    for options, runs in {
        (): path,
        ("--runtime", "auto"): path,
        ("--runtime", "onnxruntime"): compiled,
        ("--backend", "x86"): qzoo.load(path, "x86"),
    }.items():
        code, out, _ = run("classify", DIGITS[0], "-m", path, "--json", "-k", 99, *options)
        assert code == 0
        expected = classify(runs, [DIGITS[0]], topk=99)[0]
        assert json.loads(out)[0]["predictions"] == [asdict(p) for p in expected]
        assert sum(p.probability for p in expected) == pytest.approx(1, abs=1e-5)


def test_classify_computes_the_same_on_arrays_and_on_tensors() -> None:
    """PyTorch's own transforms, softmax and ranking, as the classes were told before."""
    model = qzoo.load(INT8)
    found = classify(model, DIGITS, topk=10)
    with torch.inference_mode():
        for file, guesses in zip(DIGITS, found, strict=True):
            logits = model(model.transforms(Image.open(file).convert("RGB"))[None])[0]
            best = logits.softmax(0).topk(10)
            assert [p.probability for p in guesses] == pytest.approx(best.values.tolist(), rel=1e-6)
            assert guesses[0].index == best.indices[0]
    for runtime in ("onnxruntime", "openvino"):  # a step may differ, as it may between engines
        for one, other in zip(found, classify(qzoo.compile(INT8, runtime), DIGITS), strict=True):
            assert one[0].index == other[0].index
            assert one[0].probability == pytest.approx(other[0].probability, abs=0.05)


@pytest.mark.parametrize("logits", [[3.0], [-90.0], [90.0, -90.0, 0.0], [0.1, 0.2, 0.3]])
def test_probabilities_are_pytorchs(logits: list[float]) -> None:
    values = torch.tensor(logits)
    expected = values.sigmoid() if len(logits) == 1 else values.softmax(0)
    assert probabilities(values.numpy()).tolist() == pytest.approx(expected.tolist(), rel=1e-6)


def test_an_engine_and_another_runtime_exclude_each_other() -> None:
    for runtime in ("auto", "openvino"):
        options = ("--backend", "x86", "--runtime", runtime)
        result = run("classify", DIGITS[0], *MODEL, *options)
        assert_refused(result, "leave it or --runtime out")
    code, out, _ = run("classify", DIGITS[0], *MODEL, "--backend", "x86", "--runtime", "torch")
    assert code == 0 and "digit-0" in out


def test_pictures_of_every_size_and_mode(tmp_path: Path) -> None:
    files = []
    for mode, size in [("L", (1, 1)), ("RGBA", (300, 20)), ("CMYK", (50, 50)), ("1", (9, 400))]:
        path = tmp_path / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}"
        Image.new(mode, size).save(path)
        files.append(path)
    code, out, _ = run("classify", *files, *MODEL, "--json")
    assert code == 0
    assert len(json.loads(out)) == 4


def test_one_bad_picture_stops_all(tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(DIGITS[0].read_bytes()[:90])
    assert_refused(run("classify", DIGITS[0], bad, *MODEL), "bad.png", "damaged")
    assert_refused(run("classify", DIGITS[0], tmp_path / "no.png", *MODEL), "no.png")
    assert_refused(run("classify", tmp_path, *MODEL), "folder")


def test_bad_names() -> None:
    assert_refused(run("classify", DIGITS[0], "-m", "resnet5"), "Did you mean 'resnet50'")
    assert_refused(run("info", "mobilnet_v2"), "Did you mean 'mobilenet_v2'")
    weights = ("-m", "resnet50", "-w", "IMAGENET1K_FBGEM_V2")
    assert_refused(run("classify", DIGITS[0], *weights), "Did you mean 'IMAGENET1K_FBGEMM_V2'")
    assert_refused(run("classify", DIGITS[0], *MODEL, "--backend", "cuda"), "Unknown backend")
    missing = run("classify", DIGITS[0], "-m", "./no_such_file.safetensors")
    assert_refused(missing, "no_such_file.safetensors")
    code, _, err = run("classify", DIGITS[0], *MODEL, "--topk", 0)
    assert code == 2 and "topk" in err


def test_offline_names_the_embedded_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("QZOO_OFFLINE", "1")
    monkeypatch.setenv("QZOO_HOME", str(tmp_path))
    result = run("classify", DIGITS[0], "-m", "resnet50")
    assert_refused(result, "QZOO_OFFLINE", "ShuffleNet_V2_X0_5_QuantizedWeights.DIGITS_X86_V1")


def test_weights_for_a_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    qzoo.save(qzoo.shufflenet_v2_x0_5(weights="DIGITS_X86_V1", quantize=True), path)
    assert_refused(run("classify", DIGITS[0], "-m", path, "-w", "DEFAULT"), "drop --weights")
    path.write_bytes(path.read_bytes()[:5000])
    assert_refused(run("classify", DIGITS[0], "-m", path), "cut short")


def test_a_model_without_transforms_cannot_classify(tmp_path: Path) -> None:
    with pytest.warns(qzoo.UncalibratedWarning):
        model = qzoo.shufflenet_v2_x0_5(quantize=True)
    with pytest.raises(qzoo.ArgumentError, match="transforms"):
        classify(model, DIGITS[:1])


def test_list_and_info() -> None:
    code, out, _ = run("list", "--json")
    rows = json.loads(out)
    assert code == 0
    assert {r["model"] for r in rows} == set(qzoo.list_models())
    code, out, _ = run("list", "resnet*", "--quantized")
    assert code == 0 and "resnet18" in out and "resnet34" not in out
    assert run("list", "nothing*")[1] == "No model matches.\n"
    code, out, _ = run("info", "resnet50")
    assert code == 0 and "80.282 %" in out and "published by torchvision" in out
    code, out, _ = run("info", "resnet50", "--json")
    assert json.loads(out)["num_params"] == 25557032


@pytest.mark.parametrize("command", ["list", "info", "classify", "demo"])
def test_every_help_has_an_example(command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"qzoo {command}" in out.partition("Example")[2]


def test_classify_leaves_the_model_as_it_was() -> None:
    model = qzoo.shufflenet_v2_x0_5(weights="DIGITS_X86_V1", quantize=True)
    before = torch.get_rng_state()
    classify(model, DIGITS[:1])
    assert not model.training
    assert torch.equal(before, torch.get_rng_state())
