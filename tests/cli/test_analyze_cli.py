"""The commands analyze and tune, on data that needs no download."""

from __future__ import annotations

import json

import pytest

from qzoo.artifact.format import Artifact
from qzoo.datasets.digits import Digits
from qzoo.importers.checkpoint import save_float
from qzoo.native.model import save
from qzoo.quantize import ptq
from tests.helpers.commands import invoke
from tests.helpers.trained import digits_model, imbalance


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A float checkpoint of a model that one scale per weight breaks, and its int8 artifact."""
    folder = tmp_path_factory.mktemp("models")
    model = imbalance(digits_model())
    save_float(model, folder / "float.safetensors")
    options = {"backend": "qnnpack", "recipe": "fast", "images": 64, "progress": False}
    save(ptq(model, Digits("train"), **options), folder / "int8.safetensors")
    return folder


def _analyze(files, *more: object):
    few = ("--data", "digits", "--images", 8, "--sensitivity-images", 2)
    return invoke("analyze", files / "float.safetensors", files / "int8.safetensors", *few, *more)


def test_analyze_prints_a_ranking_and_writes_a_page(files):
    result = _analyze(files, "--html", files / "report.html", "--top", 5)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert "mobilenet_v3_small, qnnpack" in lines[0] and "points lost" in lines[0]
    assert any(line.lstrip().startswith("1 ") and "features." in line for line in lines)
    assert "What to try next" in result.output and "--backend onednn" in result.output
    page = (files / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>") and page.count("<svg") > 5


def test_analyze_prints_json(files):
    result = _analyze(files, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["architecture"] == "mobilenet_v3_small" and found["accuracy"]["images"] == 8
    assert found["ranking"][0]["name"].startswith("features.")
    assert found["measured"]["sensitivity_images"] == 2


def test_tune_writes_the_best_it_finds_and_says_if_that_is_not_enough(files):
    out = files / "tuned.safetensors"
    common = ("tune", files / "float.safetensors", "--data", "digits", "--backend", "qnnpack",
              "--recipe", "fast", "--images", 64, "-o", out)  # fmt: skip
    result = invoke(*common, "--max-drop", 0, "--time-budget", 0)
    assert result.exit_code == 1, result.output
    assert "target was missed" in result.output and "time budget" in result.output
    assert Artifact.read(out).float_layers == []
    result = invoke(*common, "--max-drop", 100, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["met"] and found["images"] == 445 and found["float_layers"] == []
    assert [step["action"] for step in found["trace"]] == ["quantize"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"--data": "nowhere"}, "nowhere"),
        ({"--html": "/no/such/folder/x.html"}, "no folder"),
        ({"--seed": "-1"}, "--seed"),
    ],
)
def test_bad_input_is_one_sentence(files, change, said):
    option, value = next(iter(change.items()))
    result = _analyze(files, option, value)
    assert result.exit_code == 2 and said in result.output
    assert "Traceback" not in result.output


def test_models_that_do_not_belong_together(files):
    result = invoke("analyze", files / "float.safetensors", files / "float.safetensors",
                  "--data", "digits")  # fmt: skip
    assert result.exit_code == 2 and "float weights" in result.output
