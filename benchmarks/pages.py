"""Pages with tables that are made from results files, and the check that they are up to date."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

Row = dict[str, str]
Tables = Mapping[str, Callable[[list[Row]], str]]

RESULTS = Path(__file__).resolve().parent / "results"
ROOT = RESULTS.parent.parent
DOCS = ROOT / "docs"


def read_rows(path: Path) -> list[Row]:
    """Returns the rows of a results file; none where there is no such file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def render(text: str, rows: list[Row], tables: Tables, page: str) -> str:
    """Returns a page's text with each table between its two markers made anew.

    Args:
        text: The page.
        rows: Of the results file.
        tables: Makes each table of the rows, by its name.
        page: Name of the page.

    Raises:
        SystemExit: A table's markers are missing.
    """
    for name, table in tables.items():
        start, end = f"<!-- table: {name} -->\n", "\n<!-- end -->"
        head, found, rest = text.partition(start)
        _, closed, tail = rest.partition(end)
        if not (found and closed):
            raise SystemExit(f"{page} lacks the markers of the table {name!r}.")
        text = f"{head}{start}{table(rows)}{end}{tail}"
    return text


def rewrite(page: Path, results: Path | None, tables: Tables) -> None:
    """Rewrites a page or, with --check on the command line, only says whether it would change.

    Args:
        page: The page.
        results: The results file of the tables; None where each knows its own.
        tables: The page's tables.
    """
    before = page.read_text(encoding="utf-8")
    after = render(before, read_rows(results) if results else [], tables, page.name)
    if before == after:
        return
    if "--check" in sys.argv[1:]:
        sys.exit(f"{page.name} is out of date.")
    page.write_text(after, encoding="utf-8")


def places_measured(rows: list[Row], keys: tuple[str, ...]) -> str:
    """Returns the machines and versions that rows were measured with, a line for each."""
    ways = dict.fromkeys(
        ", ".join(row[k] if k == "cpu" else f"{k} {row[k]}" for k in keys) for row in rows
    )
    return "\n".join(f"- {way}" for way in ways)
