"""`qzoo list` and `qzoo info`: what is in the zoo."""

from __future__ import annotations

from typing import Any

import click

from ..registry import get_entry, list_models
from ..weights import read_metadata
from ._output import print_json, print_line, print_table


@click.command("list")
@click.argument("patterns", nargs=-1)
@click.option(
    "--quantized/--float-only", default=None, help="Only models with int8 weights, or none."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def list_command(patterns: tuple[str, ...], quantized: bool | None, as_json: bool) -> None:
    """List the models and their int8 weights.

    PATTERNS are shell wildcards; without any, all models are listed.

    \b
    Example:
      qzoo list "resnet*" --quantized
    """
    names = list_models(include=patterns or None, quantized=quantized)
    rows = [_row(name, weights) for name in names for weights in _weights(name) or [None]]
    if as_json:
        print_json(rows)
        return
    if not rows:
        print_line("No model matches.")
        return
    columns = ("model", "params (M)", "GMACs", "int8 weights", "backend", "top-1 (%)", "MiB")
    print_table(None, columns, [_cells(row) for row in rows], "lrrllrr")


@click.command()
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def info(model: str, as_json: bool) -> None:
    """Show everything known about MODEL and its weights.

    \b
    Example:
      qzoo info resnet50
    """
    entry = get_entry(model)
    meta = read_metadata(entry.name)
    if as_json:
        print_json(meta)
        return
    print_line(
        f"{entry.name}: {meta['num_params']:,} parameters, {meta['gmacs']} GMACs, smallest input "
        f"{meta['min_size'][0]}x{meta['min_size'][1]}"
    )
    print_line(f"float weights: torchvision.models.{meta['float_weights']}")
    if not meta["weights"]:
        print_line("int8 weights: none published yet; quantize it with references/ptq.py")
    for name, weights in meta["weights"].items():
        default = " (DEFAULT)" if name == meta["default"] else ""
        print_line()
        print_line(f"{entry.weights.__name__}.{name}{default}")
        for key, value in _facts(weights).items():
            print_line(f"  {key:<12} {value}")


def _weights(name: str) -> list[dict[str, Any] | None]:
    return [{"name": key, **value} for key, value in read_metadata(name)["weights"].items()]


def _row(model: str, weights: dict[str, Any] | None) -> dict[str, Any]:
    meta = read_metadata(model)
    row = {"model": model, "num_params": meta["num_params"], "gmacs": meta["gmacs"]}
    if weights is None:
        return {**row, "weights": None}
    dataset, figures = next(iter(weights["metrics"].items()))
    return {
        **row,
        "num_params": weights.get("num_params", meta["num_params"]),
        "gmacs": weights.get("gmacs", meta["gmacs"]),
        "weights": weights["name"],
        "backend": weights["backend"],
        "dataset": dataset,
        "top1": figures["acc@1"],
        "file_size_mib": weights["file_size_mib"],
    }


def _cells(row: dict[str, Any]) -> list[object]:
    head = [row["model"], f"{row['num_params'] / 1e6:.1f}", f"{row['gmacs']:.3f}"]
    if row["weights"] is None:
        return [*head, "-", "", "", ""]
    size = f"{row['file_size_mib']:.1f}"
    return [*head, row["weights"], row["backend"], f"{row['top1']:.2f}", size]


def _facts(weights: dict[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {"backend": weights["backend"]}
    for dataset, figures in weights["metrics"].items():
        facts["accuracy"] = f"{', '.join(f'{k} {v} %' for k, v in figures.items())} on {dataset}"
    facts["source"] = weights["source"]
    facts["method"] = weights["method"]
    facts["file"] = f"{weights['file_size_mib']} MiB, {weights['url']}"
    transforms = weights["transforms"]
    facts["input"] = f"{transforms['crop_size']}x{transforms['crop_size']} pixels"
    facts["float"] = weights["unquantized"] or "not distributed"
    facts["recipe"] = weights["recipe"]
    return facts
