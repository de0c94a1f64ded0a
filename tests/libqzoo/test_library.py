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
from qzoo.artifact.graph import Graph, Node
from qzoo.artifact.interpret import interpret
from qzoo.errors import ArgumentError, ArtifactError
from qzoo.libqzoo import binding
from tests.helpers.drawn import graphs, image
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


@KINDS
@pytest.mark.parametrize("path", EMBEDDED, ids=[p.stem for p in EMBEDDED])
def test_embedded_models(path: Any, plain: bool) -> None:
    graph = Artifact.read(path).graph
    for seed, size in enumerate([(64, 64), (33, 71)]):
        assert not differing(graph, image(seed, *size), plain)


@KINDS
def test_a_graph_of_no_builder(plain: bool) -> None:
    assert not differing(any_artifact().graph, image(3, 32, 32), plain)


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
