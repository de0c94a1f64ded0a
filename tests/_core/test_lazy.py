"""Names imported on first use leave Python's garbage collector as it was."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qzoo._core.lazy import attach


@pytest.fixture
def lazy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """The `__getattr__` of a package with a good and a broken module."""
    package = tmp_path / "lazy_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "__init__.pyi").write_text("from .good import paused\nfrom .broken import value\n")
    (package / "good.py").write_text("import gc\npaused = not gc.isenabled()\n")
    (package / "broken.py").write_text("raise RuntimeError('broken')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    __import__("lazy_package")
    enabled = gc.isenabled()
    yield attach("lazy_package", [str(package)])[0]
    (gc.enable if enabled else gc.disable)()
    for name in [n for n in sys.modules if n.startswith("lazy_package")]:
        del sys.modules[name]


@pytest.mark.parametrize("set_before", [gc.enable, gc.disable])
def test_the_collector_is_as_before(
    lazy: Callable[[str], Any], set_before: Callable[[], None]
) -> None:
    set_before()
    before = gc.isenabled()
    assert lazy("paused"), "while a module is imported"
    assert gc.isenabled() == before
    with pytest.raises(RuntimeError, match="broken"):
        lazy("value")
    assert gc.isenabled() == before
    with pytest.raises(AttributeError):
        lazy("nothing")
    assert gc.isenabled() == before
