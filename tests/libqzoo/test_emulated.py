"""The wheels for Linux give the interpreter's integers on processors that qemu emulates."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

import qzoo
from qzoo.artifact.format import ModelInfo
from qzoo.artifact.graph import Graph
from qzoo.artifact.interpret import interpret
from tests.helpers.drawn import graphs, image
from tests.helpers.emulated import emulated_program, run_emulated
from tests.helpers.graphs import any_artifact
from tests.helpers.places import ROOT
from tests.helpers.zoo import BUILDERS, calibrated

pytestmark = pytest.mark.extended
ARM, X86 = "linux-aarch64", "linux-x86_64"
#: Processors that qemu 7.2 knows, and which instructions the library uses on them; each has those
#: of the ones before, too.
PROCESSORS = {
    ARM: {"cortex-a53": "NEON", "neoverse-n1": "NEON with dot products", "max": "NEON with I8MM"},
    X86: {"Nehalem": "plain C", "Haswell": "AVX2"},
}


@pytest.fixture(scope="module")
def runners(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The programs that run artifacts, with the libraries of the wheels."""
    folder = tmp_path_factory.mktemp("wheels")
    command = [sys.executable, str(ROOT / "packaging" / "wheels.py"), "--targets", *PROCESSORS]
    done = subprocess.run(
        [*command, "--out", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    made = {}
    for target in PROCESSORS:
        machine = target.removeprefix("linux-")
        with zipfile.ZipFile(next(folder.glob(f"qzoo-*_{machine}.whl"))) as wheel:
            library = wheel.extract("qzoo/libqzoo/_qzoo.so", folder / machine)
        source = ROOT / "libqzoo" / "tests" / "run_artifact.c"
        made[target] = emulated_program(target, folder / machine / "run", source, library)
    return made


def compare(
    target: str, runner: Path, artifact: qzoo.Artifact, images: np.ndarray, threads: int
) -> None:
    """Compares logits of all images, and all integers of the last, on every processor."""
    folder = runner.parent
    artifact.write(folder / "model.safetensors")
    images.tofile(folder / "images")
    graph = artifact.graph
    seen: dict[str, np.ndarray] = {}
    logits = interpret(graph, images, lambda name, value: seen.update({name: value[-1]}))
    values = [seen[node.name] if node.grid is not None else None for node in graph.nodes]
    np.array([0 if v is None else v.size for v in values], np.int64).tofile(folder / "sizes")
    for processor, instructions in PROCESSORS[target].items():
        said = run_emulated(target, processor, runner, folder, *images.shape[2:], 0, threads)
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
def test_builders(name: str, runners: dict[str, Path]) -> None:
    artifact, images = calibrated(name, 2, size=33, slim=True)
    compare(ARM, runners[ARM], artifact, images.numpy(), 2)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(graphs())
def test_random_graphs(runners: dict[str, Path], drawn: tuple[Graph, np.ndarray]) -> None:
    graph, images = drawn
    info = ModelInfo(None, backend="onednn")
    artifact = qzoo.Artifact.from_graph(graph.nodes, graph.tensors, info)
    compare(ARM, runners[ARM], artifact, images, 1)


@pytest.mark.parametrize("target", PROCESSORS)
def test_a_graph_of_no_builder(target: str, runners: dict[str, Path]) -> None:
    for threads in (1, 3):
        compare(target, runners[target], any_artifact(), image(3, 32, 32), threads)


@pytest.mark.parametrize("target", PROCESSORS)
def test_each_function_over_all_remainders(target: str, tmp_path: Path) -> None:
    test = ROOT / "libqzoo" / "tests" / "kernels.c"
    program = emulated_program(target, tmp_path / "kernels", test, library="sources")
    known: list[str] = []
    for processor, instructions in PROCESSORS[target].items():
        if instructions != "plain C":
            known.insert(0, instructions)
            lines = run_emulated(target, processor, program).splitlines()
            assert [line.split(":")[0] for line in lines] == known
            assert all(line.endswith(", all equal") for line in lines)
