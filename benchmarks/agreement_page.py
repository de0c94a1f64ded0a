"""Writes the tables of docs/agreement.md from benchmarks/results/agreement.csv.

python benchmarks/agreement_page.py          # rewrites docs/agreement.md
python benchmarks/agreement_page.py --check  # exit code 1 if it is out of date
"""

from __future__ import annotations

from collections.abc import Callable

import pages
from pages import DOCS, Row, places_measured, rewrite

RESULTS = pages.RESULTS / "agreement.csv"
PAGE = DOCS / "agreement.md"
#: One file per builder.
BUILDERS = DOCS.parent / "weights_meta"
FACTS = ("size", "layers")
#: Runtimes whose layers can be looked at one by one, and all of them.
RUNTIMES = ("torch", "onnxruntime", "openvino", "inductor", "executorch")
NOT_MEASURED = "not measured"
#: Steps that single roundings may add up to in a logit, as in tests/runtimes/test_runtimes.py.
CLOSE = 8


def layers_table(rows: list[Row]) -> str:
    """Returns a line per builder: its runtimes' worst layers over the random and real inputs."""
    lines = [
        f"| builder | pixels | layers | {' | '.join(RUNTIMES)} |",
        "|---|---:|---:|" + "---|" * len(RUNTIMES),
    ]
    for model, found in by_model(rows).items():
        cells = [_layers(found.get(runtime, [])) for runtime in RUNTIMES]
        facts = [next((r[k] for of in found.values() for r in of if r[k]), "") for k in FACTS]
        lines.append(f"| `{model}` | {' | '.join(facts)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _layers(rows: list[Row]) -> str:
    if not rows:
        return NOT_MEASURED
    worst = max(
        rows, key=lambda r: (int(r["worst_layer_steps"]), float(r["worst_layer_differing"]))
    )
    steps, share = int(worst["worst_layer_steps"]), 100 * float(worst["worst_layer_differing"])
    where = f"{share:.2g} % of `{worst['worst_layer']}`" if steps else "all equal"
    return f"{steps}: {where}"


def logits_table(rows: list[Row]) -> str:
    """Returns a line per builder: how many of the images each runtime answers as the reference."""
    lines = [f"| builder | {' | '.join(RUNTIMES)} |", "|---|" + "---|" * len(RUNTIMES)]
    for model, found in by_model(rows).items():
        cells = [_logits(found.get(runtime, [])) for runtime in RUNTIMES]
        lines.append(f"| `{model}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _logits(rows: list[Row]) -> str:
    if not rows:
        return NOT_MEASURED
    equal, images = (sum(int(row[key]) for row in rows) for key in ("top1_equal", "images"))
    return f"{equal}/{images}, {max(int(row['logit_steps']) for row in rows)} steps"


def digits_table(rows: list[Row]) -> str:
    """Returns a line per embedded model and runtime: its answers on the held-out digits."""
    lines = [
        "| model | runtime | same answers | logits apart, steps | right answers "
        "| other answers: image (how far behind in the reference) |",
        "|---|---|---:|---:|---:|---|",
    ]
    digits = {(r["model"], r["runtime"]): r for r in rows if r["inputs"] == "digits"}
    for model in dict.fromkeys(model for model, _ in digits):
        for runtime in RUNTIMES:
            row = digits.get((model, runtime))
            if row is None:
                lines.append(f"| `{model}` | {runtime} | {NOT_MEASURED} | | | |")
                continue
            others = zip(row["differing"].split(), row["margins"].split(), strict=True)
            lines.append(
                f"| `{model}` | {runtime} | {row['top1_equal']}/{row['images']} | "
                f"{row['logit_steps'] or NOT_MEASURED} | {float(row['accuracy']):.2f} % | "
                f"{', '.join(f'{image} ({steps} steps)' for image, steps in others)} |"
            )
    return "\n".join(lines)


def by_model(rows: list[Row]) -> dict[str, dict[str, list[Row]]]:
    """Returns the rows over random and real inputs by builder, all of them, and runtime."""
    names = sorted(path.stem for path in BUILDERS.glob("*.json") if path.stem != "schema")
    found: dict[str, dict[str, list[Row]]] = {name: {} for name in names}
    for row in rows:
        if row["inputs"] != "digits":
            found[row["model"]].setdefault(row["runtime"], []).append(row)
    return found


def where_text(rows: list[Row]) -> str:
    """Returns the machines and versions that the rows were measured with."""
    return places_measured(
        rows, ("cpu", "date", "python", "qzoo", "torch", "onnxruntime", "openvino", "executorch")
    )


TABLES: dict[str, Callable[[list[Row]], str]] = {
    "layers": layers_table,
    "logits": logits_table,
    "digits": digits_table,
    "where": where_text,
}


if __name__ == "__main__":
    rewrite(PAGE, RESULTS, TABLES)
