"""Every set of libqzoo's kernels gives the integers of plain C and of the interpreter."""

from __future__ import annotations

import dataclasses
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from qzoo.artifact.graph import Graph, Node
from qzoo.artifact.grid import Grid
from qzoo.libqzoo import binding
from qzoo.libqzoo.build import sources
from tests.helpers.drawn import graphs, image
from tests.helpers.programs import program
from tests.libqzoo.test_library import differing

needs_library = pytest.mark.skipif(
    not binding.libqzoo_files(), reason="this installation was built without libqzoo"
)
TEST = sources() / "tests" / "kernels.c"
#: Sets of kernels that are left out: on x86-64, 1 leaves AVX2 where there is AVX-512; beyond the
#: last set, plain C computes.
SKIPS = (0, 1, 2)
#: What Linux says of a processor, and the kernels that it must have then.
KERNELS = {
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX-VNNI",
    "avx2": "AVX2",
    "i8mm": "NEON with I8MM",
    "asimddp": "NEON with dot products",
    "asimd": "NEON",
}


def sets(output: str) -> list[str]:
    """Returns the sets of kernels of which tests/kernels.c says that nothing differs."""
    ends = ", all equal"
    return [line.split(":")[0] for line in output.splitlines() if line.endswith(ends)]


@pytest.mark.parametrize(
    "flags",
    [
        (),
        pytest.param(("-O3",), marks=pytest.mark.extended),
        pytest.param(("-DQZ_AVX512_FORMS",), marks=pytest.mark.extended),
        pytest.param(("-g", "-fsanitize=address,undefined"), marks=pytest.mark.extended),
    ],
    ids=["quickly compiled", "as built", "AVX-VNNI as AVX-512 encodes it", "with sanitizers"],
)
def test_each_function_over_all_remainders(flags: tuple[str, ...], tmp_path: Path) -> None:
    command: tuple[str, ...] = ()
    if "-g" in flags:  # the package ziglang lacks the sanitizers' libraries
        if shutil.which("cc") is None:
            pytest.skip("there is no compiler cc here")
        command = ("cc",)
    path = program(tmp_path / "kernels", TEST, *flags, command=command, library="sources")
    done = subprocess.run([str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    if Path("/proc/cpuinfo").exists() and platform.machine() in ("x86_64", "aarch64"):
        words = set(Path("/proc/cpuinfo").read_text().split())
        wanted = {name for word, name in KERNELS.items() if word in words}
        if "-DQZ_AVX512_FORMS" in flags and "avx512_vnni" in words:
            wanted = wanted - {"AVX-VNNI"} | {"AVX-VNNI in the forms of AVX-512"}
        assert set(sets(done.stdout)) == wanted


@pytest.mark.extended
def test_gcc_compiles_for_arm_too(tmp_path: Path) -> None:
    """Its intrinsics ask for other targets than those of the package ziglang's compiler."""
    gcc = shutil.which("aarch64-linux-gnu-gcc")
    qemu = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if gcc is None or qemu is None:
        pytest.skip("no gcc for ARM here: apt-get install gcc-aarch64-linux-gnu qemu-user")
    path = program(tmp_path / "kernels", TEST, "-static", command=(gcc,), library="sources")
    done = subprocess.run([qemu, "-cpu", "max", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sets(done.stdout) == [KERNELS[word] for word in ("i8mm", "asimddp", "asimd")]


@needs_library
@settings(max_examples=50, deadline=None, derandomize=True)
@given(graphs())
def test_random_graphs(drawn: tuple[Graph, np.ndarray]) -> None:
    for skip in SKIPS:
        assert not differing(*drawn, False, skip)


def layer(channels: int, out: int, groups: int, **geometry: Any) -> Graph:
    """Returns a convolution of `channels` channels, made from the images by another one."""
    random = np.random.default_rng(channels + out)
    tensors: dict[str, np.ndarray] = {}

    def weigh(name: str, *shape: int) -> None:
        tensors[f"{name}.weight"] = random.integers(-128, 128, shape).astype(np.int8)
        tensors[f"{name}.weight_scale"] = random.uniform(0.0005, 0.005, shape[0]).astype(np.float32)
        tensors[f"{name}.bias"] = random.normal(size=shape[0]).astype(np.float32)

    grids = [Grid(0.02, zero, 0, 255) for zero in (128, 7, 255, 0)]
    kernel = geometry.pop("kernel")
    usual = {"relu": False, "stride": [1, 1], "padding": [0] * 4, "dilation": [1, 1]}
    weigh("wide", channels, 3, 1, 1)
    weigh("layer", out, channels // groups, *kernel)
    weigh("end", 2, out)
    return Graph.of(
        [
            Node("start", "quantize", ("input",), grids[0], {}),
            Node("wide", "conv2d", ("start",), grids[1], {**usual, "groups": 1}),
            Node("layer", "conv2d", ("wide",), grids[2], {**usual, "groups": groups, **geometry}),
            Node("mean", "mean", ("layer",), grids[3], {"keep_dimensions": False}),
            Node("end", "linear", ("mean",), grids[0], {"relu": False}),
            Node("logits", "dequantize", ("end",)),
        ],
        tensors,
    )


GEOMETRIES = [
    {"kernel": [1, 1]},
    {"kernel": [1, 1], "stride": [2, 3]},
    {"kernel": [3, 3], "padding": [1, 1, 1, 1]},
    {"kernel": [3, 3], "padding": [0, 1, 2, 1], "stride": [2, 2]},
    {"kernel": [3, 2], "stride": [1, 3], "dilation": [2, 3], "padding": [2, 3, 1, 0]},
    {"kernel": [5, 5], "padding": [2, 2, 2, 2], "stride": [1, 2]},
    {"kernel": [7, 1], "padding": [3, 0, 3, 0]},
]


@needs_library
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("kind", ["dense", "grouped", "depthwise"])
def test_layers(kind: str, geometry: dict[str, Any]) -> None:
    x = image(1, 9, 19)
    for channels in (2, 12, 16, 24, 34, 64, 100):
        groups = {"dense": 1, "grouped": 2, "depthwise": channels}[kind]
        out = channels if kind == "depthwise" else groups * {2: 1, 12: 15, 16: 16}.get(channels, 33)
        graph = layer(channels, out, groups, **geometry)
        for skip in SKIPS:
            assert not differing(graph, x, False, skip), (channels, skip)


@needs_library
@settings(max_examples=40, deadline=None, derandomize=True)
@given(graphs())
def test_layers_kept_in_float(drawn: tuple[Graph, np.ndarray]) -> None:
    """Each set of kernels forms their sums in the order of plain C: the same integers."""
    graph, x = drawn
    nodes, tensors = [], dict(graph.tensors)
    for node in graph.nodes:
        if node.weighted:
            scale = tensors.pop(f"{node.name}.weight_scale")
            tensors.pop(f"{node.name}.weight_zero_point", None)
            weight = tensors[f"{node.name}.weight"]
            real = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
            tensors[f"{node.name}.weight"] = real.astype(np.float32)
            node = dataclasses.replace(node, float=True)
        nodes.append(node)
    graph = Graph.of(nodes, tensors)
    height, width = x.shape[2:]
    wanted = binding.Model(graph, plain=True).session(height, width, keep=True)
    wanted.run(x)
    for skip in SKIPS:
        for threads in (1, 2):
            session = binding.Model(graph, skip=skip).session(height, width, threads, keep=True)
            session.run(x)
            for node in graph.nodes:
                if node.grid is not None:
                    assert np.array_equal(session.value(node.name), wanted.value(node.name))
