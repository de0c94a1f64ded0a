"""The wheel for 64-bit ARM gives the interpreter's integers, on processors that qemu emulates."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

import qzoo
from qzoo.artifact.format import ModelInfo
from qzoo.artifact.graph import Graph
from qzoo.artifact.interpret import interpret
from tests.helpers.arm import arm_program, run_arm
from tests.helpers.drawn import graphs, image
from tests.helpers.graphs import any_artifact
from tests.helpers.places import ROOT
from tests.helpers.zoo import BUILDERS, calibrated

pytestmark = pytest.mark.extended
#: Processors that qemu 7.2 knows, and which instructions the library uses on them; each has those
#: of the ones before, too.
PROCESSORS = {
    "cortex-a53": "NEON",
    "neoverse-n1": "NEON with dot products",
    "max": "NEON with I8MM",
}


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that runs artifacts, with the library of the wheel."""
    folder = tmp_path_factory.mktemp("arm")
    command = [sys.executable, str(ROOT / "packaging" / "wheels.py"), "--targets", "linux-aarch64"]
    done = subprocess.run(
        [*command, "--out", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(next(folder.glob("qzoo-*.whl"))) as wheel:
        library = wheel.extract("qzoo/libqzoo/_qzoo.so", folder)
    source = ROOT / "libqzoo" / "tests" / "run_artifact.c"
    return arm_program(folder / "run_artifact", source, str(library))


def compare(
    runner: Path, artifact: qzoo.Artifact, images: np.ndarray, threads: int, folder: Path
) -> None:
    """Compares logits of all images, and all integers of the last, on every processor."""
    artifact.write(folder / "model.safetensors")
    images.tofile(folder / "images")
    graph = artifact.graph
    seen: dict[str, np.ndarray] = {}
    logits = interpret(graph, images, lambda name, value: seen.update({name: value[-1]}))
    values = [seen[node.name] if node.grid is not None else None for node in graph.nodes]
    np.array([0 if v is None else v.size for v in values], np.int64).tofile(folder / "sizes")
    for processor, instructions in PROCESSORS.items():
        said = run_arm(processor, runner, folder, *images.shape[2:], 0, threads)
        assert said.strip() == instructions
        found = np.fromfile(folder / "integers", np.uint8)
        start = 0
        for node, value in zip(graph.nodes, values, strict=True):
            if value is not None:
                integers = found[start : start + value.size].reshape(value.shape)
                assert np.array_equal(integers, value), f"{node.name} on {processor}"
                start += value.size
        assert start == found.size
        got = np.fromfile(folder / "logits", np.float32).reshape(logits.shape)
        assert np.array_equal(got, logits), f"logits on {processor}"


@pytest.mark.parametrize("name", BUILDERS)
def test_builders(name: str, runner: Path, tmp_path: Path) -> None:
    artifact, images = calibrated(name, 2, size=33, slim=True)
    compare(runner, artifact, images.numpy(), 2, tmp_path)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(graphs())
def test_random_graphs(runner: Path, drawn: tuple[Graph, np.ndarray]) -> None:
    graph, images = drawn
    artifact = qzoo.Artifact.from_graph(
        graph.nodes, graph.tensors, ModelInfo(None, backend="onednn")
    )
    with tempfile.TemporaryDirectory() as folder:
        compare(runner, artifact, images, 1, Path(folder))


def test_a_graph_of_no_builder(runner: Path, tmp_path: Path) -> None:
    for threads in (1, 3):
        compare(runner, any_artifact(), image(3, 32, 32), threads, tmp_path)


def test_each_function_over_all_remainders(tmp_path: Path) -> None:
    test = ROOT / "libqzoo" / "tests" / "kernels.c"
    program = arm_program(tmp_path / "kernels", test, library="sources")
    known: list[str] = []
    for processor, instructions in PROCESSORS.items():
        known.insert(0, instructions)
        lines = run_arm(processor, program).splitlines()
        assert [line.split(":")[0] for line in lines] == known
        assert all(line.endswith(", all equal") for line in lines)
