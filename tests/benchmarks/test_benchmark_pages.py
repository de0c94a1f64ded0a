"""The pages about benchmarks say what their results files say."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest

from tests.helpers.calling import python
from tests.helpers.places import BENCHMARKS

PAGES = ("agreement_page", "latency_page")
TORCHVISION = ("torchvision fbgemm", "torchvision x86")


@pytest.fixture(scope="module")
def modules(benchmark: Callable[[str], ModuleType]) -> dict[str, ModuleType]:
    return {name: benchmark(name) for name in ("pages", *PAGES)}


@pytest.mark.parametrize("name", PAGES)
def test_the_tables_are_up_to_date(name: str) -> None:
    python(BENCHMARKS / f"{name}.py", "--check")


def test_changed_figures_and_missing_tables_are_noticed(modules: dict[str, ModuleType]) -> None:
    pages, page = modules["pages"], modules["agreement_page"]
    text, rows = page.PAGE.read_text(encoding="utf-8"), pages.read_rows(page.RESULTS)
    assert pages.render(text, rows, page.TABLES, "page") == text
    rows[0] = {**rows[0], "logit_steps": "99999"}
    assert pages.render(text, rows, page.TABLES, "page") != text
    with pytest.raises(SystemExit, match="page lacks the markers of the table 'layers'"):
        pages.render("nothing", rows, page.TABLES, "page")


def test_ratios_are_those_of_the_times(modules: dict[str, ModuleType]) -> None:
    rows = modules["pages"].read_rows(BENCHMARKS / "results" / "latency.csv")
    found = modules["latency_page"].by_configuration(rows)
    models = {model for model, _, _ in found}
    assert len(models) >= 12
    for batch in {batch for _, batch, _ in found}:
        assert {(model, batch, threads) for model in models for threads in "12"} <= found.keys()
    for candidates in found.values():
        own = candidates["qzoo auto"]
        peers = [float(r["median_ms"]) for r in candidates.values() if r["group"] == "peer"]
        ratio = float(own["median_ms"]) / min(peers)
        assert float(own["ratio"]) == pytest.approx(ratio, abs=2e-4)
        assert own["median_ms"] == candidates[f"qzoo {own['executes']}"]["median_ms"]
    native = modules["latency_page"].by_configuration(
        modules["pages"].read_rows(modules["latency_page"].NATIVE)
    )
    foreign = modules["latency_page"].FOREIGN  # which has no module with int8 layers
    assert native.keys() >= {key for key in found if key[0] != foreign}
    for candidates in native.values():
        own, *theirs = (float(candidates[n]["median_ms"]) for n in ("qzoo", *TORCHVISION))
        assert float(candidates["qzoo"]["ratio"]) == pytest.approx(own / min(theirs), abs=2e-4)
    mean = modules["latency_page"].geometric_mean
    assert mean([0.5, 2.0]) == pytest.approx(1.0)
