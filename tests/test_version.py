"""The version is told in one place, and `python -m qzoo` is the command."""

from __future__ import annotations

import re

import qzoo
from qzoo.native.model import package_versions
from qzoo.runtimes.choice import version
from tests.helpers.calling import python
from tests.helpers.places import ROOT


def test_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", qzoo.__version__) and "__version__" in dir(qzoo)
    assert package_versions()["qzoo"] == version("qzoo") == qzoo.__version__
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'dynamic = ["version"]' in project and not re.search(r"(?m)^version =", project)


def test_python_m_qzoo() -> None:
    for arguments, words in ((["--version"], qzoo.__version__), (["--help"], "python -m qzoo")):
        assert words in python("-m", "qzoo", *arguments).stdout
