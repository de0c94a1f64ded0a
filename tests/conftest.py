"""Fixtures of all tests: a known seed, one thread, and a process left as it was found."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest

#: Few examples, the same ones at every run and however busy the machine is.
hypothesis.settings.register_profile(
    "qzoo",
    max_examples=40,
    derandomize=True,
    database=None,
    deadline=None,
    # The fixtures of a property give the same for every example.
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("qzoo")


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """Seeds every generator, computes on one thread, and restores PyTorch's quantized engine."""
    random.seed(0)
    np.random.seed(0)
    if importlib.util.find_spec("torch") is None:  # the tests marked "lite" need none
        yield
        return
    import torch

    engine, threads = torch.backends.quantized.engine, torch.get_num_threads()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.backends.quantized.engine = engine


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("QZOO_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"
