"""How commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table


def print_json(value: Any) -> None:
    """Prints a value as indented JSON on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(
    title: str | None, columns: Sequence[str], rows: Iterable[Sequence[object]], right: str = ""
) -> None:
    """Prints a table on stdout, as wide as it needs where output is not a terminal.

    Args:
        title: Line above the table, or None.
        columns: Headings.
        rows: One sequence of cells per row.
        right: One character per column; "r" aligns it to the right.
    """
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=200)
    if title is not None:
        console.print(title, style="bold", soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for index, heading in enumerate(columns):
        align = "right" if right[index : index + 1] == "r" else "left"
        table.add_column(heading, justify=align, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*[str(cell) for cell in row])
    console.print(table)
