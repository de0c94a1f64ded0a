"""The benchmark of latency: its rows, its charts, its model of no builder, its count of cycles."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import qzoo
from qzoo.artifact.interpret import interpret
from qzoo.metadata import read_metadata
from qzoo.runtimes import choice, measure
from tests.helpers.places import INT8
from tests.helpers.zoo import uncalibrated


@pytest.fixture(scope="module")
def modules(benchmark: Callable[[str], ModuleType]) -> dict[str, ModuleType]:
    names = ("common", "cycles", "efficientnet", "latency", "latency_page", "pages", "plot")
    return {name: benchmark(name) for name in names}


class Peer:
    """Stands for the peers: one callable, which takes longer than the models do."""

    side = 224

    def __init__(self) -> None:
        self.skipped: dict[str, str] = {}

    def calls(self, *_: object) -> Iterator[tuple[str, str, Callable[[], object]]]:
        work = np.ones((300, 300))
        yield "a peer", "fp32", lambda: [work @ work for _ in range(20)]


@pytest.fixture
def rows(
    modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> list[dict[str, Any]]:
    latency = modules["latency"]
    monkeypatch.setenv("QZOO_HOME", str(tmp_path))
    monkeypatch.setattr(choice, "_in_process", {})
    monkeypatch.setattr(measure, "BUDGET_S", 0.01)
    monkeypatch.setattr(latency, "PEAK_SIDE", 128)
    monkeypatch.setattr(latency, "TURN_MS", 1)
    setting = latency.Configuration("shufflenet_v2_x0_5", 1, 1)
    args = argparse.Namespace(runtimes="onnxruntime,nothing", rounds=3, seconds=0)
    counter = modules["cycles"].Counter(modules["cycles"].TASK_CLOCK)
    peer = Peer()
    made = latency.measure(setting, qzoo.Artifact.read(INT8), peer, counter, args)
    counter.close()
    assert (
        list(peer.skipped) == ["qzoo nothing"] and "Unknown runtime" in peer.skipped["qzoo nothing"]
    )
    return made


def test_a_configuration_has_a_row_for_each_candidate(
    rows: list[dict[str, Any]], modules: dict[str, ModuleType]
) -> None:
    found = {row["candidate"]: row for row in rows}
    auto = rows[-1]
    assert auto["candidate"] == "qzoo auto"
    chosen, again = (found[f"qzoo {auto['executes']}{more}"] for more in ("", " again"))
    names = {"qzoo onnxruntime", chosen["candidate"], again["candidate"], "a peer", "qzoo auto"}
    assert found.keys() == names
    assert again["group"] == "again" and chosen["group"] == "qzoo"
    same = ("median_ms", "low_ms", "rounds", "ratio", "cpu_ms", "mega_cycles", "share_of_peak")
    assert all(auto[k] == chosen[k] for k in same)
    gmacs = modules["latency"].gmacs(qzoo.Artifact.read(INT8), 224)
    for row in rows:
        assert row["best_peer"] == "a peer"
        assert row["ratio"] == pytest.approx(row["median_ms"] / found["a peer"]["median_ms"], 0.01)
        noise = abs(again["median_ms"] / chosen["median_ms"] - 1)
        assert row["noise"] == pytest.approx(noise, abs=2e-3)
        per_second = gmacs / (row["median_ms"] / 1e3)
        share = per_second / row["int8_peak_gmacs"]
        assert row["share_of_peak"] == pytest.approx(share, rel=0.1, abs=1e-4)  # of rounded figures
        assert row["mega_cycles"] == "" or row["mega_cycles"] > 0


@pytest.mark.parametrize("name", ["shufflenet_v2_x1_0", "mobilenet_v3_large"])
def test_products_are_those_of_the_models_metadata(
    name: str, modules: dict[str, ModuleType]
) -> None:
    artifact = qzoo.as_artifact(uncalibrated(name))
    made = modules["latency"].gmacs(artifact, modules["latency"].side_of(name))
    assert round(made, 3) == read_metadata(name)["gmacs"]


def test_charts_of_what_was_measured(
    rows: list[dict[str, Any]], modules: dict[str, ModuleType], tmp_path: Path
) -> None:
    table = tmp_path / "latency.csv"
    old = [{"model": "other", "batch": 32, "threads": 2, "candidate": "a", "best_peer": "a"}]
    modules["common"].put(table, [{**old[0], "ratio": 1, "share_of_peak": 0.5}], ("model",))
    modules["common"].put(table, rows, ("model",))
    for draw in (modules["plot"].plot_ratios, modules["plot"].plot_shares):
        draw(table, tmp_path / "chart.png")
        with Image.open(tmp_path / "chart.png") as picture:
            assert picture.format == "PNG"
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 10  # type: ignore[arg-type]


def test_efficientnet_in_int8_is_the_float_model(modules: dict[str, ModuleType]) -> None:
    torch.manual_seed(0)
    model = modules["efficientnet"].EfficientNetLite0().train()
    # As timm counts them.
    assert sum(p.numel() for p in model.parameters()) == 4_652_008
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    images = torch.randn(8, 3, 64, 64)
    seen: dict[str, np.ndarray] = {}
    with torch.no_grad():
        model(images)
        graph = modules["efficientnet"].quantized(model.eval(), images.split(4)).graph
        for name, module in model.named_modules():
            module.register_forward_hook(
                lambda _, __, value, name=name: seen.update({name: value.numpy()})
            )
        model(images[:2])
    integers: dict[str, np.ndarray] = {}
    interpret(graph, images[:2].numpy(), lambda name, value: integers.update({name: value}))
    # In a model with random weights errors grow from layer to layer; a layer that computed
    # something else would be far off at once.
    last = 40.0
    for node in graph.nodes:
        if node.op in ("conv2d", "add", "linear"):
            real = (integers[node.name] - np.float32(node.grid.zero_point)) * node.grid.scale
            signal = (seen[node.name] ** 2).sum() / ((real - seen[node.name]) ** 2).sum()
            db = 10 * np.log10(signal)
            assert last - 4 < db < 40, node.name
            last = db
    # As TensorFlow pads: more at the bottom and on the right where the stride is 2.
    convolutions = [node for node in graph.nodes if node.op == "conv2d"]
    assert len(convolutions) == 1 + 2 + 15 * 3 + 1
    pads = {tuple(node.attributes["padding"]) for node in convolutions}
    assert pads == {(0, 0, 0, 0), (0, 0, 1, 1), (1, 1, 1, 1), (1, 1, 2, 2), (2, 2, 2, 2)}


def test_cycles_count_the_threads_that_start_later(modules: dict[str, ModuleType]) -> None:
    counter = modules["cycles"].Counter(modules["cycles"].TASK_CLOCK)  # which all machines count
    if counter.missing:
        assert counter.read() is None and counter.per_call(lambda: None) is None
        pytest.skip(counter.missing)

    def work() -> None:
        sum(range(300_000))

    def in_a_thread() -> None:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    idle, busy = counter.per_call(lambda: None), counter.per_call(in_a_thread)
    counter.close()
    assert 0 <= idle < busy and busy > 500_000  # nanoseconds
    assert counter.read() is None


def test_a_machine_without_the_counter_says_why(
    modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    cycles = modules["cycles"]
    assert "perf_event_open" in cycles.Counter((99, 99)).missing
    monkeypatch.setattr(cycles.platform, "system", lambda: "Darwin")
    assert cycles.Counter().missing == "this system has no perf_event_open"


def test_tables_of_the_page(modules: dict[str, ModuleType]) -> None:
    page = modules["latency_page"]

    def rows_of(model: str, threads: str, own: str, noise: str) -> list[dict[str, str]]:
        base = {"model": model, "batch": "1", "threads": threads, "noise": noise}
        base |= {"executes": "libqzoo", "best_peer": "peer", "share_of_peak": "0.25"}
        return [
            {**base, "candidate": "peer", "median_ms": "2", "ratio": "1.0"},
            {**base, "candidate": "qzoo libqzoo", "median_ms": "1", "ratio": own},
            {**base, "candidate": "qzoo auto", "median_ms": "1", "ratio": own},
        ]

    rows = [
        *rows_of("resnet18", "1", "0.5", "0.05"),
        *rows_of("resnet50", "1", "2.0", ""),  # of a run that had no second reading
        *rows_of("efficientnet_lite0", "1", "9.0", "0.2"),
    ]
    *_, first, second, foreign, mean = page.auto_table(rows).splitlines()
    assert first == "| `resnet18` | 0.50 ±0.03 (libqzoo 1 / 2 ms) |  |  |  |"
    assert "| 2.00 (libqzoo 1 / 2 ms) |" in second and "9.00" in foreign
    assert mean == "| geometric mean of the builders | **1.00** |  |  |  |"
    assert "| `resnet18` | 0.50 ±0.03 (1 ms) |" in page.libqzoo_table(rows)
    assert "| `resnet18` | 0.25 (peer 0.25) |" in page.share_table(rows)
    without = [row for row in rows if row["candidate"] != "qzoo libqzoo"]
    assert "resnet18" not in page.libqzoo_table(without)
    assert page.speed_table(rows).splitlines()[2] == "| `resnet18` | 1 | 2 | 0.50 |  |  |  |"
