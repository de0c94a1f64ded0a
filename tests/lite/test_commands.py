"""The commands for int8 models: without PyTorch they answer as with it, and never import it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.places import DIGITS, INT8, ROOT
from tests.helpers.without_torch import python, qzoo

pytestmark = pytest.mark.lite

RUNTIME = ("--runtime", "onnxruntime")
EMBEDDED = ("-m", "shufflenet_v2_x0_5", "-w", "DIGITS_X86_V1")
#: What is answered alike in every install. Files are written to the current folder.
COMMANDS: dict[str, tuple[Any, ...]] = {
    "list": ("list", "*net*", "--json"),
    "info of a name": ("info", "resnet50", "--json"),
    "info of a file": ("info", INT8, "--json"),
    "classify with a file": ("classify", *DIGITS[:3], "-m", INT8, *RUNTIME, "--json"),
    "classify with a name": ("classify", DIGITS[3], *EMBEDDED, *RUNTIME),
    "verify a file": ("verify", INT8, "--json"),
    "verify what is here": ("verify", "--json"),
    "convert": ("convert", INT8, "copy.safetensors", "--json"),
    "export to ONNX": ("export", "copy.safetensors", "-o", "m.onnx", "--json"),
    "download": ("download", "shufflenet_v2_x0_5", "--weights", "DIGITS_X86_V1"),
    "cache": ("cache", "--json"),
    "weights for a file": ("classify", DIGITS[0], "-m", INT8, "-w", "DEFAULT"),
    "an unknown model": ("classify", DIGITS[0], "-m", "resnet5"),
    "unknown weights": ("classify", DIGITS[0], "-m", "resnet50", "-w", "V9"),
    "no weights yet": ("download", "resnet152"),
    "a damaged file": ("verify", "damaged.safetensors", "--json"),
    "no such file": ("info", "gone.safetensors"),
    "an engine and a runtime": ("classify", DIGITS[0], *EMBEDDED, "--backend", "x86", *RUNTIME),
}


#: What only an install with PyTorch can do.
NEED_TORCH: list[tuple[Any, ...]] = [
    ("quantize", "resnet18", "digits", "-o", "q.safetensors"),
    ("evaluate", INT8, "digits"),
    ("analyze", "resnet18", INT8, "digits"),
    ("tune", "resnet18", "digits", "--max-drop", "1", "-o", "t.safetensors"),
    ("finetune", DIGITS[0].parent),
    ("convert", INT8, "m.pth"),
    ("classify", DIGITS[0], "-m", INT8, "--runtime", "torch"),
    ("classify", DIGITS[0], "-m", INT8, "--runtime", "executorch"),
    ("classify", DIGITS[0], "-m", INT8, "--backend", "onednn"),
    ("export", INT8, "--to", "executorch"),
    ("export", INT8, "--to", "aoti"),
    ("export", INT8, "--to", "torch-export"),
    ("benchmark", "resnet18", "--random"),
    ("benchmark", INT8, "--runtimes", "torch"),
]


def run_all(commands: Iterable[tuple[Any, ...]], folder: Path, hidden: bool) -> list[Any]:
    """Runs commands in one process; the last item are the heavy packages it imported."""
    words = json.dumps([[str(word) for word in command] for command in commands])
    settings = {"QZOO_HOME": str(folder / "cache"), "QZOO_OFFLINE": "1"}
    if hidden:
        code = "import runpy; runpy.run_module('tests.helpers.in_process', run_name='__main__')"
        out = python(code, words, cwd=folder, **settings)
    else:
        command = [sys.executable, "-m", "tests.helpers.in_process", words]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **settings}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        out = done.stdout
    found: list[Any] = json.loads(out.replace(str(folder), "FOLDER"))
    return found


def answers(folder: Path, hidden: bool) -> dict[str, Any]:
    folder.mkdir()
    (folder / "damaged.safetensors").write_bytes(INT8.read_bytes()[:-10])
    found = run_all(COMMANDS.values(), folder, hidden)
    return dict(zip([*COMMANDS, "heavy"], found, strict=True))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("commands")


@pytest.fixture(scope="module")
def without(folders: Path) -> dict[str, Any]:
    return answers(folders / "without", hidden=True)


@pytest.fixture(scope="module")
def with_torch(folders: Path) -> dict[str, Any]:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("there is no PyTorch here to compare with")
    return answers(folders / "with", hidden=False)


def test_commands_work_without_pytorch(without: dict[str, Any]) -> None:
    good = [name for name, answer in without.items() if name != "heavy" and answer[0] == 0]
    assert good == list(COMMANDS)[:11], {n: a for n, a in without.items() if n not in good}
    for row in json.loads(without["classify with a file"][1]):
        digit = Path(row["file"]).name.split("-")[1]
        assert row["predictions"][0]["name"] == digit
        assert sum(p["probability"] for p in row["predictions"]) <= 1 + 1e-6
    for name, words in {
        "weights for a file": "drop --weights",
        "an unknown model": "Did you mean 'resnet50'",
        "unknown weights": "has no member 'V9'",
        "no weights yet": "nobody has published",
        "no such file": "does not exist",
        "an engine and a runtime": "leave it or --runtime out",
    }.items():
        code, out, err = without[name]
        assert (code, out, err.count("\n")) == (2, "", 1) and words in err
    assert without["heavy"] == []


def test_with_pytorch_installed_they_answer_alike_and_do_not_import_it(
    without: dict[str, Any], with_torch: dict[str, Any], folders: Path
) -> None:
    assert with_torch == without
    for name in ("copy.safetensors", "m.onnx"):
        assert (folders / "with" / name).read_bytes() == (folders / "without" / name).read_bytes()
    assert (folders / "without" / "copy.safetensors").read_bytes() == INT8.read_bytes()


def test_what_needs_pytorch_says_which_install_has_it(tmp_path: Path) -> None:
    *found, heavy = run_all(NEED_TORCH, tmp_path, hidden=True)
    for command, (code, out, said) in zip(NEED_TORCH, found, strict=True):
        assert (code, out, said.count("\n")) == (2, "", 1), (command, said)
        assert "PyTorch, which is not installed" in said, (command, said)
        assert "pip install qzoo brings it" in said, (command, said)
    assert list(tmp_path.iterdir()) == [] and heavy == []


def test_the_demo_shows_int8_alone_and_says_why(tmp_path: Path) -> None:
    settings = {"QZOO_OFFLINE": "1", "QZOO_HOME": str(tmp_path / "cache")}
    out = qzoo("demo", cwd=tmp_path, **settings)
    for digit in DIGITS:
        assert digit.name in out
    assert "There is no float row" in out and "PyTorch, which is not installed" in out
    assert "qzoo[" not in out, "an extra of the complete install would bring PyTorch"
    assert "\nint8 " in out and "\nfloat32 " not in out
    assert list(tmp_path.iterdir()) == []


def test_benchmark_and_auto(tmp_path: Path) -> None:
    options = ("--size", "32", "--rounds", "1", "--no-memory", "--json")
    rows = json.loads(qzoo("benchmark", INT8, "--runtimes", "onnxruntime", *options, cwd=tmp_path))
    assert rows[0]["runtime"] == "onnxruntime" and rows[0]["median_ms"] > 0
    out = qzoo("classify", DIGITS[4], *EMBEDDED, "-k", "1", QZOO_HOME=str(tmp_path))
    assert DIGITS[4].name.split("-")[1] in out.splitlines()[1].split()


def test_float_weights_are_named_as_such(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "float.safetensors"
    save_file({"conv1.weight": np.zeros((64, 3, 7, 7), np.float32)}, path)
    commands = [("verify", path), ("info", path), ("convert", path, "out.safetensors")]
    verify, *refused, heavy = run_all(commands, tmp_path, hidden=True)
    assert verify[0] == 0 and "float weights; whether they fit" in verify[1]
    for code, out, said in refused:
        assert (code, out) == (2, "") and "PyTorch, which is not installed" in said
    assert heavy == [] and list(tmp_path.iterdir()) == [path]
