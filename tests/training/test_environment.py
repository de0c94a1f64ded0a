"""What stands in the environment and in results files is read with care."""

from __future__ import annotations

from pathlib import Path

import pytest

from qzoo import ArgumentError, ArtifactError
from qzoo.training import joined, put_row
from qzoo.training.script import command_line, rank


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE"])
@pytest.mark.parametrize("text", ["", "x", "-1", "1.5", "9" * 5000, "1e3", "²", "nan"])
def test_numbers_of_torchrun(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, text)
    with pytest.raises(ArgumentError, match=f"{name} must be a whole number"), joined("cpu"):
        pass
    assert rank() == 0  # which prints the error
    if name == "WORLD_SIZE":
        with pytest.raises(ArgumentError, match="WORLD_SIZE"):
            command_line("train.py")


@pytest.mark.parametrize(
    "content", [b"a,b\n1,\xff\n", b"a,b\n" + b"x" * 200_000 + b",2\n", b"other,columns\n1,2\n"]
)
def test_results_files(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"results\.csv"):
        put_row(path, {"a": 1, "b": 2}, ["a"])
    assert path.read_bytes() == content
