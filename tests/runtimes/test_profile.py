"""Where the time goes: what a profile says of what the library measured; its table and chart."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import qzoo
from qzoo.libqzoo import binding
from qzoo.reference import build_reference
from qzoo.runtimes import libqzoo, profile
from tests.helpers.graphs import any_artifact
from tests.helpers.places import INT8

pytestmark = pytest.mark.skipif(
    not binding.libqzoo_files(), reason="this installation was built without libqzoo"
)


@pytest.fixture(scope="module")
def compiled() -> qzoo.runtimes.CompiledModel:
    return qzoo.compile(INT8, "libqzoo", threads=1, input_size=64)


@pytest.fixture(scope="module")
def measured(compiled: qzoo.runtimes.CompiledModel) -> qzoo.runtimes.Profile:
    return compiled.profile(repeats=2)


def test_products_are_those_that_pytorch_counts(measured: qzoo.runtimes.Profile) -> None:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        build_reference(qzoo.Artifact.read(INT8))(torch.zeros(1, 3, 64, 64))
    assert 2 * measured.products == counter.get_total_flops()


def test_rows_are_the_nodes_and_add_up(
    compiled: qzoo.runtimes.CompiledModel, measured: qzoo.runtimes.Profile
) -> None:
    nodes, shapes = compiled.artifact.graph.nodes, compiled.artifact.graph.sized(64, 64)
    assert [(r.name, r.op) for r in measured.rows] == [(n.name, n.op) for n in nodes]
    assert all(r.shape == shapes[r.name][1:] for r in measured.rows)
    assert sum(r.share for r in measured.rows) == pytest.approx(1)
    assert measured.ms == pytest.approx(sum(r.ms for r in measured.rows)) and measured.ms > 0
    per_second = measured.products / (measured.ms / 1e3)
    assert measured.share_of_peak == pytest.approx(per_second / measured.peak)
    assert (measured.threads, measured.peak > 0) == (1, True)


def fake_times(monkeypatch: pytest.MonkeyPatch, *calls: list[float]) -> None:
    """Lets the sessions tell these seconds of their nodes, call by call, and the peak be 1e9."""
    rest = iter(calls)
    monkeypatch.setattr(binding.Session, "times", lambda self: np.array(next(rest)))
    monkeypatch.setattr(profile, "measure_peak", lambda: 1e9)


def test_times_are_medians_per_image_without_the_first_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = qzoo.compile(any_artifact(), "libqzoo", threads=2, input_size=32)
    count = len(model.artifact.graph.nodes)
    fake_times(monkeypatch, *([s] * count for s in (9.0, 8.0, 0.001, 0.002, 0.003, 0.004)))
    found = model.profile(np.zeros((2, 3, 32, 32), np.float32), repeats=2)
    assert [row.ms for row in found.rows] == pytest.approx([2.5] * count)
    assert found.peak == 2e9  # of both threads
    for row in found.rows:
        assert row.share == pytest.approx(1 / count)
        assert row.share_of_peak == pytest.approx(row.products / 2.5e-3 / 2e9)


def test_products_of_nodes_computed_together_count_where_the_time_is(
    monkeypatch: pytest.MonkeyPatch, compiled: qzoo.runtimes.CompiledModel
) -> None:
    names = [node.name for node in compiled.artifact.graph.nodes]
    inner = ["stage2.0.branch2.3", "stage2.0.branch2.5"]  # the first reads branch2.0
    fake_times(monkeypatch, *[[0.0 if name in inner else 0.001 for name in names]] * 2)
    rows = {row.name: row for row in compiled.profile(repeats=1).rows}
    first = rows["stage2.0.branch2.0"]
    together = first.products + sum(rows[name].products for name in inner)
    assert all(rows[n].share_of_peak == rows[n].share == 0 < rows[n].products for n in inner)
    assert first.share_of_peak == pytest.approx(together / 0.001 / 1e9)
    assert rows["conv1.0"].share_of_peak == pytest.approx(rows["conv1.0"].products / 1e6)


def test_the_peak_is_the_best_call_of_a_large_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(range(30, 0, -1))
    monkeypatch.setattr(binding.Session, "times", lambda self: np.array([9, 9, next(seconds), 9]))
    last = 30 - profile.PEAK_CALLS + 1
    assert profile.measure_peak() == pytest.approx(1024 * 1024 * 28 * 28 / last)


def test_the_table_has_a_line_per_node_and_a_total(measured: qzoo.runtimes.Profile) -> None:
    title, heads, *lines, total = str(measured).splitlines()
    assert "shufflenet_v2_x0_5, one image, 1 thread: " in title
    assert heads.split()[:2] == ["node", "operation"]
    assert [line.split()[0] for line in lines] == [row.name for row in measured.rows]
    assert total.split()[:2] == ["together", f"{measured.ms:.4f}"]
    assert f"{measured.products / 1e6:.2f}" in total


def test_the_chart_is_a_picture(measured: qzoo.runtimes.Profile, tmp_path: Path) -> None:
    path = tmp_path / "profile.png"
    measured.plot(path)
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.width > 500
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 10
    with pytest.raises(qzoo.QzooError, match="Cannot write"):
        measured.plot(tmp_path / "missing" / "profile.png")


def test_without_matplotlib_the_extra_is_named(
    measured: qzoo.runtimes.Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(qzoo.MissingDependencyError, match=r"matplotlib.*\[plot\]"):
        measured.plot(tmp_path / "profile.png")


@pytest.mark.parametrize("repeats", [0, -1, 1.5, True, "3", None])
def test_impossible_repeats(compiled: qzoo.runtimes.CompiledModel, repeats: object) -> None:
    with pytest.raises(qzoo.ArgumentError, match="repeats must be a whole number above 0"):
        compiled.profile(repeats=repeats)


def test_images_are_checked_as_in_a_call(compiled: qzoo.runtimes.CompiledModel) -> None:
    for wrong in (np.zeros((1, 3, 64, 64)), torch.zeros(3, 64, 64), "images"):
        with pytest.raises(qzoo.ArgumentError):
            compiled.profile(wrong)
    with pytest.raises(qzoo.ArgumentError, match="1x1"):
        qzoo.compile(any_artifact(), "libqzoo", threads=1).profile(np.zeros((1, 3, 1, 1), "f4"))
    small = compiled.profile(torch.zeros(1, 3, 32, 32), repeats=1)
    assert small.rows[1].shape == (24, 16, 16)


def test_other_runtimes_say_which_one_can(compiled: qzoo.runtimes.CompiledModel) -> None:
    other = qzoo.compile(INT8, "onnxruntime", threads=1, input_size=32)
    with pytest.raises(qzoo.QzooError, match=r'\'onnxruntime\' does not tell.*runtime="libqzoo"'):
        other.profile()


@pytest.mark.parametrize(("threads", "wanted"), [(1, 1), (3, 3), (None, 5)])
def test_sessions_get_the_threads(
    threads: int | None, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libqzoo, "usable_cores", lambda: 5)
    make, seen = binding.Model.session, []

    def session(self: binding.Model, height: int, width: int, threads: int = 1) -> object:
        seen.append(threads)
        return make(self, height, width, threads)

    monkeypatch.setattr(binding.Model, "session", session)
    model = qzoo.compile(INT8, "libqzoo", threads=threads, input_size=32)
    images = np.random.default_rng(0).standard_normal((4, 3, 32, 32), np.float32)
    single = qzoo.compile(INT8, "libqzoo", threads=1, input_size=32)
    assert np.array_equal(model(images), single(images))
    model(np.zeros((1, 3, 48, 48), np.float32))
    assert seen == [wanted, 1, wanted]


def test_more_cores_than_the_library_takes_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libqzoo, "usable_cores", lambda: 500)
    model = qzoo.compile(INT8, "libqzoo", input_size=32)
    assert model(np.zeros((1, 3, 32, 32), np.float32)).shape == (1, 10)
    with pytest.raises(qzoo.ArgumentError, match="500 threads"):
        qzoo.compile(INT8, "libqzoo", threads=500, input_size=32)
