"""Writes the tables of README.md from weights_meta/ and references/results/.

python references/readme_tables.py          # rewrites README.md
python references/readme_tables.py --check  # exit code 1 if it is out of date
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torchvision

import qzoo
from qzoo.metadata import read_metadata

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
from pages import Tables, read_rows, rewrite

README = Path(__file__).parent.parent / "README.md"
RESULTS = Path(__file__).parent / "results"
#: What references/compare_ptq.py measures on the fractals.
PTQ_RESULTS = RESULTS.resolve() / "ptq_fractals.csv"
#: What references/qat.py measures.
QAT_RESULTS = RESULTS.resolve() / "qat.csv"
#: The methods of the comparison of PTQ and what they are called, in the order of the table.
PTQ_METHODS = {
    "float": "float",
    "torchvision": "torchvision",
    "torchvision-fbgemm": "torchvision, always fbgemm",
    "onnxruntime-minmax": "onnxruntime, MinMax",
    "onnxruntime-entropy": "onnxruntime, Entropy",
    "onnxruntime-percentile": "onnxruntime, Percentile",
    "nncf-fast": "NNCF, fast bias correction",
    "nncf-accurate": "NNCF, accurate bias correction",
    "nncf-mixed-fast": "NNCF, mixed preset, fast",
    "nncf-mixed-accurate": "NNCF, mixed preset, accurate",
    "nncf-minmax-fast": "NNCF, mixed preset, min-max ranges, fast",
    "nncf-minmax-accurate": "NNCF, mixed preset, min-max ranges, accurate",
    "qzoo-fast": "**qzoo**, `fast`",
    "qzoo-default": "**qzoo**, `default`",
    "qzoo-best": "**qzoo**, `best`",
}


def models_table() -> str:
    """Returns a row per model and int8 weights: size, cost, accuracy and where it comes from."""
    lines = [
        "| builder | parameters (M) | GMACs | int8 weights | backend | int8 top-1 | float top-1 "
        "| MiB | figures |",
        "|---|---:|---:|---|---|---:|---:|---:|---|",
    ]
    for name in qzoo.list_models():
        meta = read_metadata(name)
        for weights, entry in meta["weights"].items() or [(None, {})]:
            lines.append(_row(name, weights, {**meta, **entry}))
    return "\n".join(lines)


def _row(name: str, weights: str | None, meta: dict[str, Any]) -> str:
    head = f"| `{name}` | {meta['num_params'] / 1e6:.1f} | {meta['gmacs']:.2f}"
    if weights is None:
        return f"{head} | – | | | | | |"
    dataset, figures = next(iter(meta["metrics"].items()))
    if meta["unquantized"]:
        float_meta = torchvision.models.get_weight(meta["unquantized"]).meta
        float_top1 = float_meta["_metrics"]["ImageNet-1K"]["acc@1"]
    else:
        float_top1 = meta["float_metrics"][dataset]["acc@1"]
    return (
        f"{head} | `{weights}` | {meta['backend']} | {figures['acc@1']:.2f} | {float_top1:.2f} | "
        f"{meta['file_size_mib']:.1f} | {meta['source']}, {dataset} |"
    )


def ptq_table_of(rows: list[dict[str, str]]) -> str:
    """Returns a line per method and a column per model; the best int8 figures are bold.

    Args:
        rows: Those of references/compare_ptq.py.
    """
    models = sorted({row["model"] for row in rows})
    found = {(row["method"], row["model"]): row for row in rows}
    best = {
        model: max(
            (float(r["top1"]) for (m, n), r in found.items() if n == model and m != "float"),
            default=0.0,
        )
        for model in models
    }
    lines = [
        f"| top-1, % | {' | '.join(f'`{m}`' for m in models)} |",
        "|---|" + "---:|" * len(models),
    ]
    for method, title in PTQ_METHODS.items():
        cells = [_top1(found.get((method, m)), method != "float", best[m]) for m in models]
        if any(cells):
            lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _top1(row: dict[str, str] | None, int8: bool, best: float) -> str:
    if row is None:
        return ""
    top1, low, high = (float(row[k]) for k in ("top1", "top1_low", "top1_high"))
    text = f"{top1:.2f}"
    # Wilson's interval is nearly symmetric at thousands of images; the file has both its ends.
    return f"{f'**{text}**' if int8 and top1 == best else text} ±{(high - low) / 2:.2f}"


def qat_table_of(rows: list[dict[str, str]]) -> str:
    """Returns a line per model, and for each data set the columns float, PTQ and QAT.

    Args:
        rows: Those of references/qat.py.
    """
    found = {(row["model"], row["data"]): row for row in rows}
    models, sets = (sorted({row[key] for row in rows}) for key in ("model", "data"))
    kinds = {"float": "float_top1", "PTQ": "ptq_top1", "QAT": "qat_top1"}
    titles = [f"{data}: {kind}" for data in sets for kind in kinds]
    lines = [f"| top-1, % | {' | '.join(titles)} |", "|---|" + "---:|" * len(titles)]
    for model in models:
        cells = []
        for data in sets:
            row = found.get((model, data), {})
            figures = [row.get(column, "") for column in kinds.values()]
            cells += [f"{float(figure):.2f}" if figure else "" for figure in figures]
            if row:
                low, high = float(row["qat_top1_low"]), float(row["qat_top1_high"])
                cells[-1] += f" ±{(high - low) / 2:.2f}"
        lines.append(f"| `{model}` | {' | '.join(cells)} |")
    return "\n".join(lines)


TABLES: Tables = {
    "models": lambda _: models_table(),
    "ptq": lambda _: ptq_table_of(read_rows(PTQ_RESULTS)),
    "qat": lambda _: qat_table_of(read_rows(QAT_RESULTS)),
}

if __name__ == "__main__":
    rewrite(README, None, TABLES)
