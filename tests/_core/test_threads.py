"""PyTorch's number of threads is set for a while, in one place, and put back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import qzoo
from qzoo._core.threads import usable_cores
from qzoo._torch.threads import torch_threads
from qzoo.training import joined

ROOT = Path(qzoo.__file__).parent


@pytest.mark.parametrize("block", [torch_threads, lambda count: joined("cpu", count)])
def test_the_number_is_put_back_whatever_happens(block) -> None:
    before = torch.get_num_threads()
    with block(before + 1):
        assert torch.get_num_threads() == before + 1
    with block(None):
        assert torch.get_num_threads() == before
    with pytest.raises(KeyError), block(before + 2):
        raise KeyError
    assert torch.get_num_threads() == before


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux binds processes")
def test_cores_are_those_that_the_process_may_use() -> None:
    allowed = os.sched_getaffinity(0)
    assert usable_cores() == len(allowed)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_nothing_else_sets_it_or_counts_cores() -> None:
    words = ("set_num_threads(", "cpu_count(", "sched_getaffinity(")
    files = [*ROOT.rglob("*.py"), *(ROOT.parent / "references").glob("*.py")]
    assert len(files) > 150
    found = {f.name for f in files if any(w in f.read_text(encoding="utf-8") for w in words)}
    assert found == {"threads.py"}
