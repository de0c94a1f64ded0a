"""Mutated artifacts: each is read, run and used, or refused with a QzooError.

tests/helpers/artifact_fuzz.py makes them, and runs 10,000 by hand, with times and memory.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.artifact_fuzz import KINDS, MOST_BYTES, cases, ends_cleanly, peak


@pytest.mark.parametrize(
    ("count", "seed", "deep"),
    [(400, 2026, 40), pytest.param(10_000, 2027, 20, marks=pytest.mark.slow)],
)
def test_mutated_artifacts(count: int, seed: int, deep: int, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    accepted = dict.fromkeys(KINDS, 0)
    for number, (kind, content) in enumerate(cases(count, seed)):
        before = peak(reset=True)
        try:
            accepted[kind] += ends_cleanly(path, content, deep=number % deep == 0)
        except BaseException:
            print(f"number {number} ({kind}) got through")
            raise
        assert peak() - before < MOST_BYTES, f"number {number} ({kind})"
    # Mutations that stop at the checksum, or at the first field, would prove little.
    for kind in ("header", "tensors", "extremes"):
        assert accepted[kind] >= 3, kind
    assert sum(accepted.values()) < count / 2
