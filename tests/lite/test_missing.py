"""What needs PyTorch says, in one sentence, which install has it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.helpers.places import DIGITS, INT8
from tests.helpers.without_torch import python, qzoo

pytestmark = pytest.mark.lite

COMMANDS = {
    "quantize": ("quantize", "resnet18", "FOLDER", "-o", "new.safetensors"),
    "evaluate": ("evaluate", INT8, "FOLDER"),
    "analyze": ("analyze", "resnet18", INT8, "--data", "FOLDER"),
    "tune": ("tune", "resnet18", "FOLDER", "-o", "new.safetensors"),
    "finetune": ("finetune", "FOLDER", "--model", "resnet18"),
    "convert to .pth": ("convert", INT8, "new.pth"),
    "export to ExecuTorch": ("export", INT8, "--to", "executorch"),
    "export by torch.export": ("export", INT8, "--to", "torch-export"),
    "export by AOTInductor": ("export", INT8, "--to", "aoti"),
    "classify on an engine": ("classify", DIGITS[0], "--model", INT8, "--backend", "x86"),
    "classify on PyTorch": ("classify", DIGITS[0], "--model", INT8, "--runtime", "torch"),
    "benchmark of PyTorch": ("benchmark", INT8, "--runtimes", "torch"),
    "benchmark of Inductor": ("benchmark", INT8, "--runtimes", "inductor"),
    "benchmark of random weights": ("benchmark", "resnet18", "--random"),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_commands_say_which_install_has_it(case: str, tmp_path: Path) -> None:
    for label in ("a", "b"):
        folder = tmp_path / "photos" / label
        folder.mkdir(parents=True)
        shutil.copy(DIGITS[0], folder)
    words = [tmp_path / "photos" if word == "FOLDER" else word for word in COMMANDS[case]]
    error = " ".join(qzoo(*words, exit_code=2, cwd=tmp_path).split())
    assert error.startswith("Error: ")
    assert error.count("Error: ") == 1
    assert "needs PyTorch" in error or "torchvision" in error
    assert "pip install qzoo" in error
    assert {path.name for path in tmp_path.iterdir()} == {"photos"}, "something was left"


@pytest.mark.parametrize(
    "code",
    [
        "from qzoo.quantize import ptq",
        "from qzoo import resnet50",
        "import qzoo; qzoo.load('x.safetensors')",
        "from qzoo.quantize import qat",
        "from qzoo.models import resnet50",
        "from qzoo.analysis import analyze",
        "import qzoo; qzoo.analysis",
        "import qzoo.native.model",
        "import qzoo; qzoo.get_model('resnet18', quantize=True)",
        "import qzoo; qzoo.compile({file!r}, runtime='torch')",
        "import qzoo; qzoo.Artifact.read({file!r}).tensors['fc.weight']",
        "import qzoo; qzoo.load({file!r})",
    ],
)
def test_imports_and_calls_say_which_install_has_it(code: str) -> None:
    code = code.format(file=str(INT8))
    checked = f"""
from qzoo.errors import MissingDependencyError
try:
    exec({code!r})
except MissingDependencyError as error:
    print(error)
else:
    raise AssertionError("it worked")
"""
    sentence = python(checked).strip()
    assert "needs PyTorch" in sentence
    assert "pip install qzoo" in sentence
    assert "\n" not in sentence
