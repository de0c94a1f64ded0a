"""What the benchmarks share: ways that take turns, the environment, results files."""

from __future__ import annotations

import argparse
import gc
import os
import platform
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pages import read_rows

from qzoo._core.timing import time_once
from qzoo.runtimes.choice import machine, version
from qzoo.training.files import write_csv

#: Milliseconds of a call on the clock and of the CPU, by the name of the way, round by round.
Times = dict[str, list[tuple[float, float]]]
Row = dict[str, Any]


def environment(packages: Iterable[str]) -> Row:
    """Returns what figures may depend on besides what is compared, as columns of results files."""
    return {
        "cpu": machine(),
        "load": round(os.getloadavg()[0], 1),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def in_turn(ways: Mapping[str, Callable[[], object]], rounds: int | Mapping[str, int]) -> Times:
    """Times ways that take turns in every round, so that a busy machine slows all of them down.

    Args:
        ways: Name to callable without arguments.
        rounds: How many rounds, of all or of each way.
    """
    counts = dict.fromkeys(ways, rounds) if isinstance(rounds, int) else rounds
    times: Times = {way: [] for way in ways}
    for number in range(max(counts[way] for way in ways)):
        for way, call in ways.items():
            if number < counts[way]:
                gc.collect()
                times[way].append(time_once(call))
    return times


def ratios(times: Times, way: str, base: str = "float") -> Row:
    """Returns by how much a way takes longer than another one: medians over their common rounds.

    They are compared round by round, because a slow stretch of the machine slows both.
    """
    pairs = list(zip(times[way], times[base], strict=False))
    return {
        name: round(statistics.median(a[i] / b[i] for a, b in pairs), 4)
        for i, name in enumerate(("ratio", "cpu_ratio"))
    }


def parser_of_ways(
    about: str | None, models: Iterable[str], ways: Iterable[str], rounds: int, threads: int
) -> argparse.ArgumentParser:
    """Returns a parser with the options of a comparison of ways beside "float".

    Args:
        about: The script's docstring.
        models: Default models.
        ways: The ways.
        rounds: Default number of rounds.
        threads: Default number of threads.
    """
    ways = list(ways)
    parser = argparse.ArgumentParser(description=(about or "").split("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(models), help="default: %(default)s")
    parser.add_argument("--ways", nargs="+", default=ways, choices=ways)
    parser.add_argument("--size", type=int, default=224, help="pixels; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=rounds, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=threads, help="default: %(default)s")
    parser.add_argument("--csv", type=Path, help="also write the figures to this file")
    parser.add_argument("--append", action="store_true", help="keep the file's other rows")
    return parser


def report(
    options: argparse.Namespace,
    rows_of: Callable[[str, argparse.Namespace], list[Row]],
    columns: Mapping[str, str],
    key: Sequence[str],
) -> None:
    """Measures one model after the other, prints the rows as a table, and writes them.

    Args:
        options: Those of `parser_of_ways`.
        rows_of: Measures a model.
        columns: What is printed: a column's name to the form of its values, such as "9.2f".
        key: The columns that say which measurement a row is.
    """
    if "float" not in options.ways:
        options.ways.insert(0, "float")
    rows: list[Row] = []
    widths = {name: form.split(".")[0] for name, form in columns.items()}
    print("".join(f"{name:{width}}" for name, width in widths.items()))
    for model in options.models:
        for row in rows_of(model, options):
            rows.append(row)
            print("".join(f"{row[name]:{form}}" for name, form in columns.items()), flush=True)
        if options.csv:
            put(options.csv, rows, key, keep=options.append)


def put(path: Path, rows: Sequence[Row], key: Sequence[str], *, keep: bool = True) -> None:
    """Writes rows to a results file.

    Args:
        path: The file.
        rows: The rows, all with the same columns.
        key: The columns that say which measurement a row is.
        keep: Whether the file's rows of other measurements stay. The new ones then stand where
            those of the same measurements stood, or at the end. Columns that only some rows have
            are empty in the others.
    """
    new = {tuple(str(row[k]) for k in key) for row in rows}
    old = read_rows(path) if keep else []
    known = [tuple(row[k] for k in key) in new for row in old]
    place = known.index(True) if True in known else len(old)
    kept = [row for row, same in zip(old, known, strict=True) if not same]
    table = [*kept[:place], *rows, *kept[place:]]
    columns = dict.fromkeys(name for row in [*rows, *table] for name in row)
    write_csv(path, [dict.fromkeys(columns, "") | row for row in table])
