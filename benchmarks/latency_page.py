"""Writes the tables of docs/latency.md from benchmarks/results/*.csv.

python benchmarks/latency_page.py          # rewrites docs/latency.md
python benchmarks/latency_page.py --check  # exit code 1 if it is out of date
"""

from __future__ import annotations

import math

from pages import DOCS, RESULTS, Row, places_measured, read_rows, rewrite

#: Batch sizes and threads, in the order of the columns.
COLUMNS = (("1", "1"), ("1", "2"), ("32", "1"), ("32", "2"))
AUTO = "qzoo auto"
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


def _table(title: str, rows: list[Row], cell: str) -> str:
    columns = " | ".join(f"batch {b}, {t} thread{'s' * (t != '1')}" for b, t in COLUMNS)
    lines = [f"| {title} | {columns} |", "|---|" + "---:|" * len(COLUMNS)]
    found = by_configuration(rows)
    values: dict[tuple[str, str], list[float]] = {column: [] for column in COLUMNS}
    for model in dict.fromkeys(row["model"] for row in rows):
        cells = []
        for column in COLUMNS:
            row = found.get((model, *column))
            text, ratio = _CELLS[cell](row) if row else ("", None)
            cells.append(text)
            if ratio:
                values[column].append(ratio)
        lines.append(f"| `{model}` | {' | '.join(cells)} |")
    means = [f"**{geometric_mean(values[column]):.2f}**" for column in COLUMNS]
    return "\n".join([*lines, f"| geometric mean | {' | '.join(means)} |"])


def geometric_mean(values: list[float]) -> float:
    """Returns the geometric mean; NaN of nothing."""
    if not values:
        return math.nan
    return math.exp(sum(map(math.log, values)) / len(values))


def _auto(row: dict[str, Row]) -> tuple[str, float]:
    own, best = row[AUTO], row[row[AUTO]["best_peer"]]
    ratio = float(own["ratio"])
    times = f"{float(own['median_ms']):.3g} / {float(best['median_ms']):.3g} ms"
    return f"{ratio:.2f} ({own['executes']} {times})", ratio


def _default(row: dict[str, Row]) -> tuple[str, float]:
    ratio = float(row["qzoo"]["ratio"])
    return f"{ratio:.2f}", ratio


_CELLS = {"auto": _auto, "default": _default}


def auto_table(rows: list[Row]) -> str:
    """Returns the time of `auto` over that of the fastest peer, which is in milliseconds too."""
    return _table("`auto` / fastest peer", rows, "auto")


def default_table(rows: list[Row]) -> str:
    """Returns the time of `quantize=True` over that of torchvision's faster int8 engine."""
    return _table("`quantize=True` / torchvision int8", rows, "default")


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
    "default": lambda _: default_table(read_rows(NATIVE)),
    "peers": peers_table,
    "where": where,
    "imports": lambda _: imports_table(read_rows(IMPORTS)),
}

if __name__ == "__main__":
    rewrite(DOCS / "latency.md", RESULTS / "latency.csv", TABLES)
