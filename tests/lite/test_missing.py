"""What needs PyTorch says, in one sentence, which install has it."""

from __future__ import annotations

import json

import pytest

from tests.helpers.places import INT8
from tests.helpers.without_torch import python

pytestmark = pytest.mark.lite

#: Imports and calls of what needs PyTorch; FILE is an artifact.
CODES = [
    "from qzoo.quantize import ptq",
    "from qzoo import resnet50",
    "from qzoo.quantize import qat",
    "from qzoo.models import resnet50",
    "from qzoo.analysis import analyze",
    "from qzoo.datasets import Digits",
    "from qzoo.reference import build_reference",
    "from qzoo.training import Trainer",
    "import qzoo; qzoo.analysis",
    "import qzoo.native.model",
    "import qzoo; qzoo.get_model('resnet18', quantize=True)",
    "import qzoo; qzoo.compile(FILE, runtime='torch')",
    "import qzoo; qzoo.Artifact.read(FILE).tensors['fc.weight']",
    "import qzoo; qzoo.load(FILE)",
]


def test_imports_and_calls_say_which_install_has_it() -> None:
    code = """
import json, sys
from qzoo.errors import MissingDependencyError
found = {}
for code in json.loads(sys.argv[2]):
    try:
        exec(code, {"FILE": sys.argv[1]})
    except MissingDependencyError as error:
        found[code] = str(error)
print(json.dumps(found))
"""
    found = json.loads(python(code, INT8, json.dumps(CODES)))
    assert list(found) == CODES
    for sentence in found.values():
        assert "needs PyTorch, which is not installed" in sentence
        assert "pip install qzoo" in sentence
        assert "\n" not in sentence
