"""Writes the tables of README.md from weights_meta/ and references/results/.

python references/readme_tables.py          # rewrites README.md
python references/readme_tables.py --check  # exit code 1 if it is out of date
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torchvision

import qzoo
from qzoo.weights import read_metadata

README = Path(__file__).parent.parent / "README.md"


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


TABLES: dict[str, Callable[[], str]] = {"models": models_table}


def render(text: str) -> str:
    """Returns the README's text with each table between its two markers made anew."""
    for name, table in TABLES.items():
        start, end = f"<!-- table: {name} -->\n", "\n<!-- end -->"
        head, found, rest = text.partition(start)
        _, closed, tail = rest.partition(end)
        if not (found and closed):
            raise SystemExit(f"README.md lacks the markers of the table {name!r}.")
        text = f"{head}{start}{table()}{end}{tail}"
    return text


def main() -> None:
    """Rewrites README.md, or with --check only says whether it would change."""
    before = README.read_text(encoding="utf-8")
    after = render(before)
    if "--check" in sys.argv[1:]:
        sys.exit("README.md is out of date." if before != after else 0)
    README.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
