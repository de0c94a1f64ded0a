"""What the benchmarks share: turns, ratios and results files, by hand; and the table of imports."""

from __future__ import annotations

import csv
import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def common(benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark("common")


def test_ways_take_turns(common: ModuleType) -> None:
    seen: list[str] = []
    ways = {name: lambda name=name: seen.append(name) for name in ("a", "b", "c")}
    times = common.in_turn(ways, {"a": 3, "b": 1, "c": 2})
    assert seen == ["a", "b", "c", "a", "c", "a"]
    assert {name: len(taken) for name, taken in times.items()} == {"a": 3, "b": 1, "c": 2}
    assert all(wall >= 0 and cpu >= 0 for taken in times.values() for wall, cpu in taken)


def test_ratios_are_medians_over_common_rounds(common: ModuleType) -> None:
    times = {"float": [(1.0, 2.0), (10.0, 4.0), (2.0, 1.0)], "x": [(3.0, 2.0), (20.0, 2.0)]}
    assert common.ratios(times, "x") == {"ratio": 2.5, "cpu_ratio": 0.75}
    assert common.ratios(times, "float") == {"ratio": 1.0, "cpu_ratio": 1.0}


def test_rows_stand_where_those_of_the_same_measurement_stood(
    common: ModuleType, tmp_path: Path
) -> None:
    path, key = tmp_path / "r.csv", ("model", "batch")

    def put(*rows: tuple[str, int, int], keep: bool = True) -> list[tuple[str, str, str]]:
        names = ("model", "batch", "ms")
        common.put(path, [dict(zip(names, row, strict=True)) for row in rows], key, keep=keep)
        with path.open(newline="") as file:
            return [tuple(row.values()) for row in csv.DictReader(file)]  # type: ignore[misc]

    put(("a", 1, 5), ("a", 1, 6), ("b", 1, 7))
    assert put(("c", 1, 8)) == [("a", "1", "5"), ("a", "1", "6"), ("b", "1", "7"), ("c", "1", "8")]
    assert put(("a", 1, 9))[:2] == [("a", "1", "9"), ("b", "1", "7")]
    assert put(("b", 2, 1), ("b", 1, 2))[1:3] == [("b", "2", "1"), ("b", "1", "2")]
    assert put(("d", 1, 1), keep=False) == [("d", "1", "1")]


def test_rows_of_other_columns_stand_beside_each_other(common: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    common.put(path, [{"model": "a", "ms": 1}], ("model",))
    common.put(path, [{"model": "b", "noise": None, "ms": 2}], ("model",))
    common.put(path, [{"model": "c", "ms": 3}], ("model",))
    lines = path.read_text(encoding="utf-8").splitlines()
    assert sorted(lines[0].split(",")) == ["model", "ms", "noise"]
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(r["model"], r["ms"], r["noise"]) for r in rows] == [
        ("a", "1", ""), ("b", "2", ""), ("c", "3", "")
    ]  # fmt: skip


def test_a_command_that_fails_ends_the_measurement_of_imports(common: ModuleType) -> None:
    imports = importlib.import_module("imports")
    wall, cpu = imports.run(["-c", "pass"])
    assert wall > 0 and cpu >= 0
    with pytest.raises(SystemExit, match="no_such_module"):
        imports.run(["-c", "import no_such_module"])


def test_import_times_are_judged_by_their_bars(common: ModuleType) -> None:
    imports = importlib.import_module("imports")
    base = imports.BASE
    times = {
        base: [(2.0, 1.0), (4.0, 2.0), (2.0, 1.0)],
        "import qzoo": [(0.1, 0.1), (0.2, 0.1), (0.1, 0.1)],
        "from qzoo import resnet50": [(2.2, 1.0), (4.4, 2.0), (2.2, 1.0)],
        "qzoo list": [(0.5, 0.5)] * 3,
    }
    rows = {row["command"]: row for row in imports.rows_of(times)}
    assert rows["import qzoo"]["ratio"] == 0.05
    assert rows["from qzoo import resnet50"]["ratio"] == 1.1
    assert imports.verdict(rows["import qzoo"]).startswith("meets")
    assert imports.verdict(rows["from qzoo import resnet50"]).startswith("MISSES")
    assert imports.verdict(rows["qzoo list"]).startswith("MISSES")
    assert imports.verdict(rows[base]) == ""
