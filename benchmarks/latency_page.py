"""Writes the tables of docs/latency.md, and README.md's on speed, from benchmarks/results/*.csv.

python benchmarks/latency_page.py          # rewrites the pages
python benchmarks/latency_page.py --check  # exit code 1 if one is out of date
"""

from __future__ import annotations

import math
from collections.abc import Callable

from pages import DOCS, RESULTS, ROOT, Row, places_measured, read_rows, rewrite

#: Batch sizes and threads, in the order of the columns.
COLUMNS = (("1", "1"), ("1", "2"), ("32", "1"), ("32", "2"))
AUTO, LIBQZOO = "qzoo auto", "qzoo libqzoo"
#: It has a row, but no part in the means: no builder makes it.
FOREIGN = "efficientnet_lite0"
#: What benchmarks/latency.py measured.
LATENCY = RESULTS / "latency.csv"
#: What benchmarks/native.py measured.
NATIVE = RESULTS / "native.csv"
#: What benchmarks/imports.py measured.
IMPORTS = RESULTS / "imports.csv"


def by_configuration(rows: list[Row]) -> dict[tuple[str, str, str], dict[str, Row]]:
    """Returns the candidates' rows by model, batch size and threads."""
    found: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in rows:
        key = row["model"], row["batch"], row["threads"]
        found.setdefault(key, {})[row["candidate"]] = row
    return found


#: Candidates of one configuration by name.
Candidates = dict[str, Row]
#: Returns what a cell says of a configuration, and the number that the mean is of.
Cell = Callable[[Candidates], tuple[str, float]]


def _table(title: str, rows: list[Row], candidate: str, cell: Cell) -> str:
    """Returns a row per model and a column per configuration; without the candidate, no cell."""
    columns = " | ".join(f"batch {b}, {t} thread{'s' * (t != '1')}" for b, t in COLUMNS)
    lines = [f"| {title} | {columns} |", "|---|" + "---:|" * len(COLUMNS)]
    found = by_configuration(rows)
    values: dict[tuple[str, str], list[float]] = {column: [] for column in COLUMNS}
    for model in dict.fromkeys(row["model"] for row in rows):
        cells = []
        for column in COLUMNS:
            here = found.get((model, *column), {})
            text, value = cell(here) if candidate in here else ("", math.nan)
            cells.append(text)
            if text and model != FOREIGN:
                values[column].append(value)
        if any(cells):
            lines.append(f"| `{model}` | {' | '.join(cells)} |")
    means = [f"**{geometric_mean(v):.2f}**" if v else "" for v in values.values()]
    return "\n".join([*lines, f"| geometric mean of the builders | {' | '.join(means)} |"])


def geometric_mean(values: list[float]) -> float:
    """Returns the geometric mean; NaN of nothing."""
    if not values:
        return math.nan
    return math.exp(sum(map(math.log, values)) / len(values))


def _ratio(row: Row) -> str:
    """Returns a ratio, and by how much two readings of one thing differed in the same run."""
    ratio = float(row["ratio"])
    noise = f" ±{ratio * float(row['noise']):.2f}" if row.get("noise") else ""
    return f"{ratio:.2f}{noise}"


def _auto(here: Candidates) -> tuple[str, float]:
    own, best = here[AUTO], here[here[AUTO]["best_peer"]]
    times = f"{float(own['median_ms']):.3g} / {float(best['median_ms']):.3g} ms"
    return f"{_ratio(own)} ({own['executes']} {times})", float(own["ratio"])


def _libqzoo(here: Candidates) -> tuple[str, float]:
    own = here[LIBQZOO]
    return f"{_ratio(own)} ({float(own['median_ms']):.3g} ms)", float(own["ratio"])


def _share(here: Candidates) -> tuple[str, float]:
    own, best = here[LIBQZOO], here[here[LIBQZOO]["best_peer"]]
    shares = [float(row["share_of_peak"]) for row in (own, best)]
    return f"{shares[0]:.2f} (peer {shares[1]:.2f})", shares[0]


def _default(here: Candidates) -> tuple[str, float]:
    ratio = float(here["qzoo"]["ratio"])
    return f"{ratio:.2f}", ratio


def auto_table(rows: list[Row]) -> str:
    """Returns the time of `auto` over that of the fastest peer, which is in milliseconds too."""
    return _table("`auto` / fastest peer", rows, AUTO, _auto)


def libqzoo_table(rows: list[Row]) -> str:
    """Returns the time of libqzoo over that of the fastest peer."""
    return _table("libqzoo / fastest peer", rows, LIBQZOO, _libqzoo)


def share_table(rows: list[Row]) -> str:
    """Returns how much of the machine's int8 matrix product libqzoo and the fastest peer reach."""
    return _table("libqzoo / int8 matrix product", rows, LIBQZOO, _share)


def default_table(rows: list[Row]) -> str:
    """Returns the time of `quantize=True` over that of torchvision's faster int8 engine."""
    return _table("`quantize=True` / torchvision int8", rows, "qzoo", _default)


def speed_table(rows: list[Row]) -> str:
    """Returns for the README what one picture takes, in qzoo and in the fastest peer."""
    found = by_configuration(rows)
    lines = [
        "| one picture | 1 thread: qzoo, ms | fastest peer, ms | ratio "
        "| 2 threads: qzoo, ms | fastest peer, ms | ratio |",
        "|---|" + "---:|" * 6,
    ]
    for model in dict.fromkeys(row["model"] for row in rows):
        cells: list[str] = []
        for threads in ("1", "2"):
            here = found.get((model, "1", threads))
            if here is None:
                cells += [""] * 3
                continue
            own, best = here[AUTO], here[here[AUTO]["best_peer"]]
            times = [f"{float(row['median_ms']):.3g}" for row in (own, best)]
            cells += [*times, f"{float(own['ratio']):.2f}"]
        lines.append(f"| `{model}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def peers_table(rows: list[Row]) -> str:
    """Returns how often each peer was the fastest."""
    best = [row["best_peer"] for row in rows if row["candidate"] == AUTO]
    return "\n".join(
        f"- {name}: {best.count(name)} of {len(best)} configurations"
        for name in sorted(set(best), key=lambda n: (-best.count(n), n))
    )


def imports_table(rows: list[Row]) -> str:
    """Returns a line per command of the time that it takes in a process of its own."""
    lines = [
        "| command | seconds | of `import torch, torchvision` | CPU seconds | of its |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        figures = (f"{float(row[k]):.2f}" for k in ("median_s", "ratio", "cpu_s", "cpu_ratio"))
        lines.append(f"| `{row['command']}` | {' | '.join(figures)} |")
    return "\n".join(lines)


def where(rows: list[Row]) -> str:
    """Returns the machines and versions."""
    return places_measured(
        rows, ("cpu", "date", "python", "qzoo", "torch", "onnxruntime", "openvino", "nncf")
    )


TABLES = {
    "auto": auto_table,
    "libqzoo": libqzoo_table,
    "share": share_table,
    "default": lambda _: default_table(read_rows(NATIVE)),
    "peers": peers_table,
    "where": where,
    "imports": lambda _: imports_table(read_rows(IMPORTS)),
}

if __name__ == "__main__":
    rewrite(DOCS / "latency.md", LATENCY, TABLES)
    rewrite(ROOT / "README.md", LATENCY, {"speed": speed_table})
