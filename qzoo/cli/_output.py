"""How commands print: lines and tables for people, JSON and CSV for programs.

Everything that a command says goes through here, because names of classes, files and servers may
hold what a terminal obeys (`qzoo.safe_text`), and because not every terminal writes Unicode.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from typing import TYPE_CHECKING, Any

import click

from ..safe_text import encodable, printable_json, terminal_text

if TYPE_CHECKING:
    from tqdm import tqdm


#: What is narrower is not folded: then the terminal itself breaks lines at its edge.
LEAST_FOLDED = 16


def print_line(text: object = "", *, err: bool = False) -> None:
    """Prints one line, on stdout or stderr; line breaks within it are escaped."""
    click.echo(terminal_text(text, sys.stderr if err else sys.stdout), err=err)


def print_error(error: object) -> None:
    """Prints what ended a command, on stderr."""
    print_line(f"Error: {error}", err=True)


def print_warning(message: object) -> None:
    """Prints a warning on stderr; where it has several lines, the further ones are indented."""
    first, *others = str(message).rstrip().split("\n")
    print_line(f"Warning: {first}", err=True)
    for line in others:
        print_line(f"  {line}", err=True)


@contextmanager
def any_text() -> Iterator[None]:
    """Escapes what the encoding of stdout or stderr lacks, instead of failing, in a block.

    What commands say themselves is escaped already; this is for what click and libraries print.
    """
    streams = [s for s in (sys.stdout, sys.stderr) if isinstance(s, io.TextIOWrapper)]
    kept = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in zip(streams, kept, strict=True):
            with suppress(OSError, ValueError):  # closed, or its reader has gone
                stream.reconfigure(errors=errors)


@contextmanager
def only_json(wanted: bool) -> Iterator[None]:
    """Keeps stdout for one JSON document: what is printed within goes to stderr.

    Args:
        wanted: Whether JSON was asked for; else nothing changes.
    """
    with redirect_stdout(sys.stderr) if wanted else nullcontext():
        yield


def print_json(value: Any) -> None:
    """Prints a value as indented JSON on stdout."""
    text = printable_json(json.dumps(value, indent=2, ensure_ascii=False))
    click.echo(encodable(text, sys.stdout.encoding, json=True))


def print_csv(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints rows with the same keys as CSV on stdout, the keys as its heading."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(rows[0])
    for row in rows:
        writer.writerow(["" if value is None else _cell(value) for value in row.values()])
    click.echo(text.getvalue(), nl=False)


def progress(things: Iterable[Any] | None = None, **options: Any) -> tqdm[Any]:
    """Returns a progress bar on stderr, which shows only where that is a terminal.

    Args:
        things: What to go through; they come out of the bar one by one.
        **options: Of `tqdm`, such as `total`, `desc` and `unit`.
    """
    from tqdm import tqdm

    columns, rows = shutil.get_terminal_size()  # 80 x 24 where a terminal does not say
    return tqdm(things, disable=None, leave=False, ncols=columns - 1, nrows=rows, **options)


def print_table(
    title: str | None,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    right: str = "",
    grouped: bool = False,
) -> None:
    """Prints a table on stdout: folded to fit a terminal, else one line per row however long.

    Args:
        title: Line above the table, or None.
        columns: Headings.
        rows: One sequence of cells per row.
        right: One character per column; "r" aligns it to the right.
        grouped: Whether a terminal leaves out a first cell that is like the one above.
    """
    from rich.cells import cell_len  # here, because help and JSON do without
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    cells = [[_cell(cell) for cell in row] for row in rows]
    if title is not None:
        console.print(Text(_cell(title), style="bold"), soft_wrap=True)
    widths = [max(map(cell_len, column)) for column in zip(columns, *cells, strict=True)]
    room = console.width - sum(widths) - 2 * (len(widths) - 1) + max(widths)
    if not console.is_terminal or room < min(LEAST_FOLDED, max(widths)):
        _print_lines([list(columns), *cells], right)
        return
    table = Table(box=None, pad_edge=False)
    for index, (heading, width) in enumerate(zip(columns, widths, strict=True)):
        align = "right" if right[index : index + 1] == "r" else "left"
        # Where a terminal is too narrow, the widest column alone gives way.
        folds = width == max(widths)
        table.add_column(heading, justify=align, overflow="fold", no_wrap=not folds)  # type: ignore[arg-type]
    above = None
    for first, *others in cells:
        shown = "" if grouped and first == above else first
        # As Text, in which neither [markup] nor an :emoji: means anything.
        table.add_row(*[Text(cell) for cell in (shown, *others)])
        above = first
    console.print(table)


def _print_lines(rows: Sequence[Sequence[str]], right: str) -> None:
    """Prints rows in columns that are as wide as their longest cell."""
    from rich.cells import cell_len

    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        padded = [
            gap + cell if right[index : index + 1] == "r" else cell + gap
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
            for gap in [" " * (width - cell_len(cell))]
        ]
        click.echo("  ".join(padded).rstrip())


def _cell(value: object) -> str:
    return terminal_text(value, sys.stdout)
