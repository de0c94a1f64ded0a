"""libqzoo gives the integers of the interpreter: fast kernels and plain C, for any graph."""

from __future__ import annotations

import dataclasses
import gc
import os
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qzoo.artifact.format import Artifact
from qzoo.artifact.graph import Graph, Node, make_table
from qzoo.artifact.grid import Grid
from qzoo.artifact.interpret import interpret
from qzoo.artifact.operations import FUNCTIONS
from qzoo.errors import ArgumentError, ArtifactError
from qzoo.libqzoo import binding
from tests.helpers.graphs import any_artifact
from tests.helpers.places import PACKAGE

pytestmark = pytest.mark.skipif(
    not binding.libqzoo_files(), reason="this installation was built without libqzoo"
)
KINDS = pytest.mark.parametrize("plain", [False, True], ids=["fast kernels", "plain C"])
EMBEDDED = sorted((PACKAGE / "embedded").glob("*.safetensors"))


def differing(graph: Graph, x: np.ndarray, plain: bool, skip: int = 0) -> list[str]:
    """Returns the nodes whose integers are not the interpreter's for a batch of one image.

    Sessions that keep everything, that share memory, and that share the work out, all must agree.
    """
    model = binding.Model(graph, plain, skip)
    seen: dict[str, np.ndarray] = {}
    wanted = interpret(graph, x, lambda name, value: seen.update({name: value}))
    bad = []
    height, width = x.shape[2:]
    for threads in (1, 2, 3):
        session = model.session(height, width, threads, keep=True)
        logits = [session.run(x), model.session(height, width, threads).run(x)]
        assert logits[0].dtype == np.float32
        bad += [
            node.name
            for node in graph.nodes
            if node.grid is not None
            and not np.array_equal(session.value(node.name), seen[node.name][0])
        ]
        bad += [f"logits {threads} {i}" for i in (0, 1) if not np.array_equal(logits[i], wanted)]
    return bad


def image(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(1, 3, height, width)).astype(np.float32)


@KINDS
@pytest.mark.parametrize("path", EMBEDDED, ids=[p.stem for p in EMBEDDED])
def test_embedded_models(path: Any, plain: bool) -> None:
    graph = Artifact.read(path).graph
    for seed, size in enumerate([(64, 64), (33, 71)]):
        assert not differing(graph, image(seed, *size), plain)


@KINDS
def test_a_graph_of_no_builder(plain: bool) -> None:
    assert not differing(any_artifact().graph, image(3, 32, 32), plain)


class Drawn:
    """A graph that grows node by node, of whatever hypothesis draws."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        self.nodes: list[Node] = []
        self.tensors: dict[str, np.ndarray] = {}
        #: Name to grid, channels, height and width.
        self.known: dict[str, tuple[Grid, int, int, int]] = {}

    def grid(self) -> Grid:
        low = self.draw(st.sampled_from([0, 0, 3, 100]))
        zero = self.draw(st.sampled_from([low, 0, 128, 255]))
        return Grid(
            float(self.random.uniform(0.005, 0.05)), zero, low, self.draw(st.integers(low + 1, 255))
        )

    def add(
        self, op: str, inputs: tuple[str, ...], grid: Grid, size: tuple[int, int, int], **more: Any
    ) -> str:
        name = f"n{len(self.nodes)}"
        self.nodes.append(Node(name, op, inputs, grid, more))
        self.known[name] = (grid, *size)
        return name

    def weigh(self, name: str, shape: tuple[int, ...]) -> None:
        """Gives the node that comes next its weight, in one of the forms that there are."""
        count = shape[0]
        self.tensors[f"{name}.weight"] = self.random.integers(-128, 128, shape).astype(np.int8)
        form = self.draw(st.sampled_from(["channel", "channel", "tensor", "zero points"]))
        scale = self.random.uniform(0.0005, 0.01, () if form == "tensor" else (count,))
        self.tensors[f"{name}.weight_scale"] = np.asarray(scale, np.float32)
        if form == "zero points":
            zeros = self.random.integers(-20, 20, count).astype(np.int8)
            self.tensors[f"{name}.weight_zero_point"] = zeros
        if self.draw(st.booleans()):
            self.tensors[f"{name}.bias"] = self.random.normal(size=count).astype(np.float32)

    def source(self) -> str:
        return self.draw(st.sampled_from(sorted(self.known)[-3:]))

    def conv(self) -> None:
        source = self.source()
        _, channels, height, width = self.known[source]
        whole = [g for g in (1, 2, 4, channels) if channels % g == 0]
        groups = self.draw(st.sampled_from(whole))
        out = (
            groups * self.draw(st.sampled_from([1, 3, 8, 16, 17, 33, 64]))
            if groups < 5
            else channels
        )
        kernel = [self.draw(st.integers(1, min(3, n))) for n in (height, width)]
        stride = [self.draw(st.integers(1, 2)) for _ in range(2)]
        padding = [self.draw(st.integers(0, 2)) for _ in range(4)]
        dilation = [self.draw(st.integers(1, 2)) if k == 1 else 1 for k in kernel]
        spread = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        tall = (height + padding[0] + padding[2] - spread[0] - 1) // stride[0] + 1
        wide = (width + padding[1] + padding[3] - spread[1] - 1) // stride[1] + 1
        self.weigh(f"n{len(self.nodes)}", (out, channels // groups, *kernel))
        self.add(
            "conv2d", (source,), self.grid(), (out, tall, wide), relu=False, stride=stride,
            padding=padding, dilation=dilation, groups=groups,
        )  # fmt: skip

    def pool(self) -> None:
        source = self.source()
        grid, channels, height, width = self.known[source]
        kernel = [self.draw(st.integers(1, min(3, n))) for n in (height, width)]
        stride, padding = [1, 1], [k // 2 for k in kernel]
        tall, wide = (
            n + 2 * p - k + 1 for n, p, k in zip((height, width), padding, kernel, strict=True)
        )
        size, usual = (
            (channels, tall, wide),
            {"kernel": kernel, "stride": stride, "padding": padding, "ceil_mode": False},
        )
        if self.draw(st.booleans()):
            self.add("max_pool2d", (source,), grid, size, **usual, dilation=[1, 1])
        else:
            self.add(
                "avg_pool2d",
                (source,),
                self.grid(),
                size,
                **usual,
                count_include_pad=self.draw(st.booleans()),
            )

    def pair(self) -> None:
        first = self.source()
        size = self.known[first][1:]
        second = self.draw(
            st.sampled_from(sorted(n for n, k in self.known.items() if k[1:] == size))
        )
        op = self.draw(st.sampled_from(["add", "mul", "concat"]))
        grid = self.draw(st.sampled_from([self.grid(), self.known[first][0]]))
        if op == "concat":
            self.add(op, (first, second), grid, (2 * size[0], *size[1:]))
        else:
            self.add(op, (first, second), grid, size, **({"relu": False} if op == "add" else {}))

    def gate(self) -> None:
        source = self.source()
        _, channels, height, width = self.known[source]
        mean = self.add("mean", (source,), self.grid(), (channels, 1, 1), keep_dimensions=True)
        order = (source, mean) if self.draw(st.booleans()) else (mean, source)
        self.add("mul", order, self.grid(), (channels, height, width))

    def move(self) -> None:
        source = self.source()
        grid, channels, height, width = self.known[source]
        kind = self.draw(st.sampled_from(["slice", "channel_shuffle", "pad", "clip", "table"]))
        size = (channels, height, width)
        if kind == "table":
            function = self.draw(st.sampled_from(sorted(FUNCTIONS)))
            target = self.grid()
            name = self.add(kind, (source,), target, size, function=function)
            self.tensors[f"{name}.table"] = make_table(function, grid, target)
        elif kind == "slice":
            start = self.draw(st.integers(0, channels - 1))
            stop = self.draw(st.integers(start + 1, channels))
            self.add(kind, (source,), grid, (stop - start, height, width), start=start, stop=stop)
        elif kind == "channel_shuffle":
            groups = self.draw(st.sampled_from([g for g in (1, 2, 3) if channels % g == 0]))
            self.add(kind, (source,), grid, size, groups=groups)
        elif kind == "pad":
            around = [self.draw(st.integers(0, 2)) for _ in range(4)]
            tall, wide = height + around[0] + around[2], width + around[1] + around[3]
            self.add(kind, (source,), grid, (channels, tall, wide), padding=around)
        else:
            high = self.draw(st.integers(grid.low, grid.high))
            cut = Grid(grid.scale, grid.zero_point, grid.low, high)
            self.add(kind, (source,), cut, size)

    def finish(self) -> Graph:
        """Joins what nothing reads yet, and ends in a linear layer."""
        read = {name for node in self.nodes for name in node.inputs}
        parts = []
        for name in [n for n in self.known if n not in read]:
            channels = self.known[name][1]
            parts.append(
                self.add("mean", (name,), self.grid(), (channels, 1, 1), keep_dimensions=False)
            )
        last = parts[0]
        if len(parts) > 1:
            channels = sum(self.known[p][1] for p in parts)
            last = self.add("concat", tuple(parts), self.grid(), (channels, 1, 1))
        self.weigh(f"n{len(self.nodes)}", (5, self.known[last][1]))
        last = self.add("linear", (last,), self.grid(), (5, 1, 1), relu=False)
        return Graph.of([*self.nodes, Node("end", "dequantize", (last,))], self.tensors)


@st.composite
def graphs(draw: Any) -> tuple[Graph, np.ndarray]:
    drawn = Drawn(draw)
    height, width = draw(st.integers(5, 12)), draw(st.integers(5, 12))
    drawn.add("quantize", ("input",), drawn.grid(), (3, height, width))
    for _ in range(draw(st.integers(1, 7))):
        getattr(
            drawn, draw(st.sampled_from(["conv", "conv", "conv", "pool", "pair", "gate", "move"]))
        )()
    # Sizes are those of this image alone.
    return drawn.finish(), image(draw(st.integers(0, 99)), height, width)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(graphs())
def test_random_graphs(drawn: tuple[Graph, np.ndarray]) -> None:
    for plain in (False, True):
        assert not differing(*drawn, plain)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_batches_are_images_one_by_one(threads: int) -> None:
    """Several threads get an image each; those that are left over are shared out."""
    graph = Artifact.read(EMBEDDED[0]).graph
    session = binding.Model(graph).session(64, 64, threads)
    x = np.concatenate([image(seed, 64, 64) for seed in range(5)])
    assert np.array_equal(session.run(x), np.concatenate([session.run(one[None]) for one in x]))


@KINDS
@settings(max_examples=30, deadline=None, derandomize=True)
@given(graphs(), st.booleans())
def test_pictures_as_bytes(plain: bool, drawn: tuple[Graph, np.ndarray], affine: bool) -> None:
    """They give what the numbers that their bytes stand for give, with an affine in between too."""
    graph, x = drawn
    random = np.random.default_rng(0)
    if affine:
        numbers = {key: [float(v) for v in random.normal(size=3)] for key in ("gain", "offset")}
        first = Node("affine", "affine", ("input",), None, numbers)
        rest = [
            dataclasses.replace(n, inputs=tuple("affine" if i == "input" else i for i in n.inputs))
            for n in graph.nodes
        ]
        graph = Graph.of([first, *rest], graph.tensors)
    pictures = random.integers(0, 256, (3, *x.shape[2:], 3)).astype(np.uint8)
    values = random.normal(size=(3, 256)).astype(np.float32)
    images = np.stack([values[c][pictures[..., c]] for c in range(3)], axis=1)
    for threads in (1, 2):
        session = binding.Model(graph, plain).session(x.shape[2], x.shape[3], threads)
        got = session.run_bytes(pictures, values)
        assert np.array_equal(got, session.run(np.ascontiguousarray(images)))


def test_times_of_nodes() -> None:
    graph = Artifact.read(EMBEDDED[0]).graph
    session = binding.Model(graph).session(64, 64, times=True)
    session.run(image(0, 64, 64))
    times = dict(zip([node.name for node in graph.nodes], session.times(), strict=True))
    assert all(times[n.name] > 0 for n in graph.nodes if n.op == "conv2d")
    assert min(times.values()) >= 0
    with pytest.raises(ArgumentError, match="no times"):
        binding.Model(graph).session(64, 64).times()


def _logits_of(session: binding.Session, x: np.ndarray, wanted: np.ndarray) -> int:
    return 0 if np.array_equal(session.run(x), wanted) else 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_goes_on_computing() -> None:
    session = binding.Model(Artifact.read(EMBEDDED[0]).graph).session(64, 64, threads=2)
    x = image(0, 64, 64)
    wanted = session.run(x)
    child = os.fork()
    if child == 0:
        os._exit(_logits_of(session, x, wanted))
    assert os.waitpid(child, 0)[1] == 0
    assert np.array_equal(session.run(x), wanted)


def test_threads_with_sessions_of_their_own() -> None:
    graph = Artifact.read(EMBEDDED[0]).graph
    model = binding.Model(graph)
    images = [image(seed, 64, 64) for seed in range(4)]
    wanted = [model.session(64, 64).run(x) for x in images]
    wrong: list[int] = []

    def work(number: int) -> None:
        session = model.session(64, 64)
        same = (np.array_equal(session.run(images[number]), wanted[number]) for _ in range(20))
        if not all(same):
            wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_model_is_its_own() -> None:
    """What it was made of may change and go."""
    graph = Artifact.read(EMBEDDED[0]).graph
    session = binding.Model(graph).session(64, 64)
    x = image(0, 64, 64)
    before = session.run(x)
    for array in graph.tensors.values():
        array[...] = 0
    del graph
    gc.collect()
    assert np.array_equal(session.run(x), before)


def test_what_is_wrong_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = Artifact.read(EMBEDDED[0]).graph
    model = binding.Model(graph)
    with pytest.raises(ArgumentError, match="impossible"):
        model.session(0, 64)
    with pytest.raises(ArgumentError, match="impossible"):
        model.session(40_000, 64)
    with pytest.raises(ArgumentError, match="not kept"):
        model.session(64, 64).value(graph.nodes[0].name)
    monkeypatch.setattr(binding, "OPS", (*binding.OPS[1:], binding.OPS[0]))
    with pytest.raises(ArtifactError, match=r"libqzoo: node 0 "):
        binding.Model(graph)


def test_memory_is_that_of_the_weights() -> None:
    graph = Artifact.read(EMBEDDED[0]).graph
    weights = sum(array.nbytes for array in graph.tensors.values())
    model = binding.Model(graph)
    assert weights / 2 < model.memory < 3 * weights
    kept, shared = model.session(64, 64, keep=True), model.session(64, 64)
    assert shared.memory < kept.memory / 2
