"""The processes of these tests have no PyTorch, as in the small install."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from tests.helpers.without_torch import python, qzoo

pytestmark = pytest.mark.lite


@pytest.mark.parametrize("name", ["torch", "torchvision", "torchao", "executorch", "torch.nn"])
def test_pytorch_is_missing(name: str) -> None:
    code = """
import importlib.metadata, importlib.util, subprocess, sys
name = sys.argv[1]
top = name.partition(".")[0]
try:
    __import__(name)
except ModuleNotFoundError as error:
    assert error.name == top and str(error) == f"No module named {top!r}"
else:
    raise AssertionError("it was found")
assert importlib.util.find_spec(top) is None
assert importlib.util.find_spec("numpy") and importlib.metadata.version("numpy")
try:
    importlib.metadata.version(top)
except importlib.metadata.PackageNotFoundError:
    print("not installed")
child = subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True, text=True)
print(child.stderr.splitlines()[-1])
"""
    top = name.partition(".")[0]
    expected = f"not installed\nModuleNotFoundError: No module named {top!r}\n"
    assert python(code, name) == expected


def test_failures_are_not_swallowed() -> None:
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        python("1 / 0")
    with pytest.raises(AssertionError, match="No such command"):
        qzoo("nonsense")
    assert "No such command" in qzoo("nonsense", exit_code=2)


def test_the_small_environment_is_small() -> None:
    if importlib.util.find_spec("torch"):
        pytest.skip("PyTorch is installed here")
    files = [path for path in Path(sys.prefix).rglob("*") if path.is_file()]
    assert len(files) > 1000
    assert sum(path.lstat().st_blocks * 512 for path in files) <= 400 * 2**20
