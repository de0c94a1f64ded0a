"""Advice that did nothing when it was tried is not given; lists end in "..." only where they do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from qzoo.analysis import findings
from qzoo.analysis.findings import Advice, find
from qzoo.datasets.sources import open_folder
from qzoo.errors import ArgumentError, listed


def diagnosis(gain: float, observer: str) -> Any:
    """Returns what `find` reads of a diagnosis whose one fault is a range."""
    span = SimpleNamespace(
        excess_db=9.0, best_low=0.0, best_high=1.0, low=0.0, high=4.0, clipped=0.0,
        float_low=0.0, float_high=1.0,
    )  # fmt: skip
    layer = SimpleNamespace(name="conv1", range=span, weight=None, dead_channels=0, channels=8)
    damage = SimpleNamespace(sqnr_db=20.0, noise=0.01, agreement=97.0)
    better = SimpleNamespace(sqnr_db=20.0 + gain, noise=0.01, agreement=98.0)
    return SimpleNamespace(
        comparison=SimpleNamespace(
            layers=(layer,), layer=lambda _: layer, native=damage, simulated=damage
        ),
        ranking=(SimpleNamespace(name="conv1", wrong_range=True, wrong_weights=False),),
        recipe={"observer": observer, "calibration_images": 512},
        experiments=(
            SimpleNamespace(kind="as it is", layers=(), damage=damage),
            SimpleNamespace(kind="other ranges", layers=("conv1",), damage=better),
        ),
        backend="onednn",
        accuracy=SimpleNamespace(drop=None, drop_interval=None, agreement=97.0),
    )


@pytest.mark.parametrize("observer", ["mse", "minmax"])
@pytest.mark.parametrize(
    ("gain", "helps"), [(0.0, False), (0.04, False), (-3.0, False), (0.6, True), (9.0, True)]
)
def test_what_gained_nothing_heads_no_advice(gain: float, helps: bool, observer: str) -> None:
    found = {f.kind: f for f in find(diagnosis(gain, observer))}
    finding = found["wrong range"]
    assert finding.severity == ("fault" if helps else "note")
    assert all(a.gain_db is None or a.gain_db >= findings.NOTICEABLE_DB for a in finding.advice)
    if helps:
        assert finding.advice[0].gain_db == pytest.approx(gain)
    else:
        assert "gain nothing" in finding.text
        assert next(iter(found)) == "fine"


def test_what_gained_most_comes_first() -> None:
    gains = [None, 0.1, 2.0, 5.0, None, -1.0]
    advice = [Advice(str(i), gain_db=gain) for i, gain in enumerate(gains)]
    assert [a.text for a in findings._helpful(advice)] == ["3", "2", "0", "4"]


@pytest.mark.parametrize("count", [1, 5, 6, 7, 20])
def test_lists_end_in_dots_only_where_names_are_missing(count: int) -> None:
    names = [f"class {i}" for i in range(count)]
    text = listed(names)
    assert text.endswith(", ...") == (count > 6)
    assert text.removesuffix(", ...").split(", ") == names[:6]


def test_all_classes_of_a_folder_are_all(tmp_path) -> None:
    from PIL import Image

    for name in "abcdef":
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "x.png")
    with pytest.raises(ArgumentError, match=r"has 6 \(a, b, c, d, e, f\): they do not belong"):
        open_folder(tmp_path).labels_of(["one", "two"], 2)
