"""Where libqzoo was not built or cannot be loaded, qzoo works without it and says so once."""

from __future__ import annotations

import _ctypes
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import qzoo
from qzoo.libqzoo import binding
from qzoo.runtimes import api
from tests.helpers.places import INT8

#: What lies in the library's place, and what is said of it.
CASES = {
    "nothing": "was not built with this installation of qzoo",
    "no library": "cannot be loaded",
    "another library": "is not that of this version of qzoo",
}


@pytest.fixture(params=CASES)
def why(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[str]:
    """What is wrong with the library here, in words."""
    damaged = tmp_path / "_qzoo.so"
    damaged.write_text("no library")
    files = {"nothing": [], "no library": [damaged], "another library": [Path(_ctypes.__file__)]}
    monkeypatch.setattr(binding, "libqzoo_files", lambda: files[request.param])
    for cached in (binding._load, api._library_missing):
        cached.cache_clear()
    yield CASES[request.param]
    for cached in (binding._load, api._library_missing):
        cached.cache_clear()


def test_auto_goes_on_without_and_says_so_once(why: str) -> None:
    assert "libqzoo" not in qzoo.available_runtimes()
    with pytest.warns(UserWarning, match=f"libqzoo {why}.* qzoo works without it") as said:
        model = qzoo.compile(INT8, threads=1)
    assert len(said) == 1
    assert model.runtime != "libqzoo"
    assert model(np.zeros((1, 3, 64, 64), np.float32)).shape == (1, 10)
    with warnings.catch_warnings(record=True) as more:
        qzoo.compile(INT8, threads=1)
        assert api.runtime_for(1) == "auto"
    assert not more


def test_a_few_pictures_are_classified_without(why: str) -> None:
    with pytest.warns(UserWarning, match=why):
        assert api.runtime_for(1) == "auto"


def test_asked_for_by_name_it_is_an_error(why: str) -> None:
    with pytest.raises(qzoo.MissingDependencyError, match=f"'libqzoo' needs libqzoo, which {why}"):
        qzoo.compile(INT8, "libqzoo")
    with pytest.raises(qzoo.MissingDependencyError, match=f"libqzoo {why}"):
        binding.library()
