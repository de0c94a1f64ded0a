"""The page about agreement says what was measured, and what was measured meets its bar."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest

import qzoo

EMBEDDED = ("mobilenet_v3_small", "shufflenet_v2_x0_5")


@pytest.fixture(scope="module")
def page(benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark("agreement_page")


def test_no_layer_is_further_than_a_step_on_any_builder_measured(page: ModuleType) -> None:
    rows = [row for row in page.pages.read_rows(page.RESULTS) if row["inputs"] != "digits"]
    assert list(page.by_model(rows)) == qzoo.list_models()
    measured = {(row["model"], row["runtime"], row["inputs"]) for row in rows}
    # Both kinds of images or none: half a measurement would look like a whole one.
    assert all((model, runtime, "real") in measured for model, runtime, _ in measured)
    assert all((model, runtime, "random") in measured for model, runtime, _ in measured)
    for row in rows:
        assert int(row["images"]) == 64
        assert int(row["float_layers"]) == 0, row
        assert int(row["layers"]) > 0
        assert int(row["worst_layer_steps"]) <= 1, row


@pytest.mark.parametrize("model", EMBEDDED)
def test_digits_are_answered_alike_but_for_close_calls(page: ModuleType, model: str) -> None:
    rows = [
        r
        for r in page.pages.read_rows(page.RESULTS)
        if r["inputs"] == "digits" and r["model"] == model
    ]
    assert {row["runtime"] for row in rows} == set(page.RUNTIMES)
    for row in rows:
        margins = [int(steps) for steps in row["margins"].split()]
        assert int(row["images"]) == 445
        assert len(margins) == len(row["differing"].split()) == 445 - int(row["top1_equal"])
        assert all(steps <= page.CLOSE for steps in margins), row


def test_what_was_not_measured_is_said(page: ModuleType) -> None:
    rows = [row for row in page.pages.read_rows(page.RESULTS) if row["inputs"] != "digits"][:1]
    cells = len(qzoo.list_models()) * len(page.RUNTIMES)
    assert page.logits_table(rows).count(page.NOT_MEASURED) == cells - 1
