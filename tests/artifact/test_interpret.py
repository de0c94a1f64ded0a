"""The arithmetic of docs/artifact.md against PyTorch's float64 operations, rounded exactly."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from qzoo.artifact.graph import Graph, Node, make_table
from qzoo.artifact.grid import Grid
from qzoo.artifact.interpret import interpret
from qzoo.artifact.operations import FUNCTIONS
from qzoo.errors import ArgumentError

IN, OUT = Grid(0.0173, 113), Grid(0.041, 97, 5, 250)
END = Grid(1.0, 0)


def run(
    nodes: list[Node], arrays: dict[str, np.ndarray], x: np.ndarray, of: str
) -> dict[str, np.ndarray]:
    """Runs nodes behind a quantize called "q" and in front of a mean; returns all integers."""
    ends = [
        Node("q", "quantize", ("input",), IN),
        *nodes,
        Node("m", "mean", (of,), END, {"keep_dimensions": False}),
        Node("d", "dequantize", ("m",)),
    ]
    if nodes and nodes[-1].op in ("linear", "flatten"):
        ends = [*ends[:-2], Node("d", "dequantize", (of,))]
    seen: dict[str, np.ndarray] = {}
    interpret(Graph.of(ends, arrays), x, lambda name, value: seen.update({name: value}))
    return seen


def real(value: np.ndarray, grid: Grid) -> torch.Tensor:
    return torch.from_numpy((value.astype(np.float64) - grid.zero_point) * np.float32(grid.scale))


def check(got: np.ndarray, exact: torch.Tensor, grid: Grid) -> None:
    """Compares integers with real results: equal, or one apart where the result is near a tie."""
    steps = exact.numpy() / float(np.float32(grid.scale))
    want = np.clip(np.rint(steps) + grid.zero_point, grid.low, grid.high)
    tie = np.abs(np.abs(steps - np.floor(steps)) - 0.5) < 1e-3
    apart = np.abs(got.astype(np.int64) - want)
    assert got.dtype == np.uint8 and got.shape == tuple(exact.shape)
    assert apart.max() <= 1 and not apart[~tie].any()
    assert len(np.unique(got)) > 3  # a comparison of constants would say nothing


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def x(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(2, 3, 11, 9)).astype(np.float32)


def weights(rng: np.random.Generator, shape: tuple[int, ...], how: str) -> dict[str, np.ndarray]:
    count = shape[0]
    if how == "float":
        weight = rng.normal(0, 0.3, shape).astype(np.float32)
        return {"c.weight": weight, "c.bias": rng.normal(size=count).astype(np.float32)}
    arrays = {"c.weight": rng.integers(-128, 128, shape).astype(np.int8)}
    if how == "per tensor":
        return {**arrays, "c.weight_scale": np.array(0.0031, np.float32)}
    scale = rng.uniform(0.001, 0.004, count)
    if how == "zero points":
        arrays["c.weight_zero_point"] = rng.integers(-9, 9, count).astype(np.int8)
        return {**arrays, "c.weight_scale": scale}
    bias = rng.normal(size=count).astype(np.float32)
    return {**arrays, "c.weight_scale": scale.astype(np.float32), "c.bias": bias}


def real_weight(arrays: dict[str, np.ndarray]) -> torch.Tensor:
    weight = arrays["c.weight"].astype(np.float64)
    if "c.weight_scale" not in arrays:
        return torch.from_numpy(weight)
    shape = (-1, *[1] * (weight.ndim - 1))
    zero = arrays.get("c.weight_zero_point", np.zeros(1)).astype(np.float64).reshape(shape)
    scale = arrays["c.weight_scale"].astype(np.float32).astype(np.float64).reshape(-1)
    return torch.from_numpy((weight - zero) * scale.reshape(shape))


@pytest.mark.parametrize("how", ["per channel", "per tensor", "zero points", "float"])
@pytest.mark.parametrize(
    "geometry",
    [
        {"stride": [1, 1], "padding": [0, 0, 0, 0], "dilation": [1, 1], "groups": 1},
        {"stride": [2, 1], "padding": [1, 2, 1, 2], "dilation": [1, 2], "groups": 3},
        {"stride": [2, 2], "padding": [0, 1, 2, 0], "dilation": [1, 1], "groups": 1},
    ],
)
@pytest.mark.parametrize("relu", [False, True])
def test_convolutions(
    how: str, geometry: dict[str, Any], relu: bool, x: np.ndarray, rng: np.random.Generator
) -> None:
    arrays = weights(rng, (6, 3 // geometry["groups"], 3, 2), how)
    grid = Grid(OUT.scale, OUT.zero_point, OUT.zero_point if relu else OUT.low, OUT.high)
    node = Node("c", "conv2d", ("q",), grid, {**geometry, "relu": relu}, how == "float")
    seen = run([node], arrays, x, "c")
    top, left, bottom, right = geometry["padding"]
    bias = arrays.get("c.bias")
    exact = F.conv2d(
        F.pad(real(seen["q"], IN), (left, right, top, bottom)),
        real_weight(arrays),
        None if bias is None else torch.from_numpy(bias).double(),
        geometry["stride"],
        0,
        geometry["dilation"],
        geometry["groups"],
    )
    check(seen["c"], exact.relu() if relu else exact, grid)


@pytest.mark.parametrize("how", ["per channel", "per tensor", "zero points", "float"])
def test_linear(how: str, x: np.ndarray, rng: np.random.Generator) -> None:
    arrays = weights(rng, (7, 60), how)
    nodes = [
        Node("q", "quantize", ("input",), IN),
        Node("f", "flatten", ("q",), IN),
        Node("c", "linear", ("f",), OUT, {"relu": False}, how == "float"),
        Node("d", "dequantize", ("c",)),
    ]
    seen: dict[str, np.ndarray] = {}
    images = x[:, :, :5, :4]
    logits = interpret(Graph.of(nodes, arrays, (5, 4)), images, seen.__setitem__)
    bias = arrays.get("c.bias")
    exact = real(seen["q"], IN).flatten(1) @ real_weight(arrays).T
    check(seen["c"], exact if bias is None else exact + torch.from_numpy(bias), OUT)
    assert np.array_equal(logits, real(seen["c"], OUT).float().numpy())


SETTINGS = [
    (kernel, stride, padding, dilation, ceil)
    for kernel, stride, padding, dilation, ceil in itertools.product(
        ([3, 2], [2, 2]),
        ([1, 2], [2, 2], [3, 3]),
        ([0, 0], [1, 1]),
        ([1, 1], [2, 1]),
        (False, True),
    )
]


@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation", "ceil"), SETTINGS)
def test_pools(
    kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool, x: np.ndarray
) -> None:
    own = {"kernel": kernel, "stride": stride, "padding": padding, "ceil_mode": ceil}
    node = Node("p", "max_pool2d", ("q",), IN, {**own, "dilation": dilation})
    seen = run([node], {}, x, "p")
    integers = torch.from_numpy(seen["q"].astype(np.float64))
    largest = F.max_pool2d(integers, kernel, stride, padding, dilation, ceil)
    assert np.array_equal(seen["p"], largest.numpy())
    if dilation == [1, 1]:
        for counted in (False, True):
            node = Node("p", "avg_pool2d", ("q",), OUT, {**own, "count_include_pad": counted})
            got = run([node], {}, x, "p")["p"]
            exact = F.avg_pool2d(real(seen["q"], IN), kernel, stride, padding, ceil, counted)
            check(got, exact, OUT)


@pytest.mark.parametrize("function", sorted(FUNCTIONS))
def test_tables(function: str, x: np.ndarray) -> None:
    truths: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "hard_sigmoid": F.hardsigmoid, "hard_swish": F.hardswish, "tanh": torch.tanh,
        "gelu": F.gelu, "silu": F.silu, "sigmoid": torch.sigmoid, "relu": F.relu, "relu6": F.relu6,
    }  # fmt: skip
    grid = Grid(0.0041, 60, 2, 240)
    node = Node("t", "table", ("q",), grid, {"function": function})
    seen = run([node], {"t.table": make_table(function, IN, grid)}, x, "t")
    check(seen["t"], truths[function](real(seen["q"], IN)), grid)


def test_what_joins_tensors(x: np.ndarray) -> None:
    other = Grid(0.0091, 71)
    pool = {"kernel": [3, 3], "stride": [1, 1], "padding": [1, 1], "ceil_mode": False}
    average = Node("b", "avg_pool2d", ("q",), other, {**pool, "count_include_pad": True})
    one = Node("g", "mean", ("b",), other, {"keep_dimensions": True})

    def values(*nodes: Node) -> tuple[np.ndarray, torch.Tensor, torch.Tensor, torch.Tensor]:
        seen = run([average, *nodes], {}, x, "n")
        gate = real(seen.get("g", seen["b"]), other)
        return seen["n"], real(seen["q"], IN), real(seen["b"], other), gate

    got, a, b, _ = values(Node("n", "add", ("q", "b"), OUT, {"relu": False}))
    check(got, a + b, OUT)
    cut = Grid(OUT.scale, OUT.zero_point, OUT.zero_point)
    got, a, b, _ = values(Node("n", "add", ("b", "q"), cut, {"relu": True}))
    check(got, (a + b).relu(), cut)
    got, a, b, _ = values(Node("n", "concat", ("q", "b", "q"), OUT))
    check(got, torch.cat([a, b, a], 1), OUT)
    fine = Grid(0.0021, 130)
    got, a, _, g = values(one, Node("n", "mul", ("g", "q"), fine))
    check(got, a * g, fine)


def test_what_moves_integers(x: np.ndarray) -> None:
    wide = Node("w", "concat", ("q", "q"), IN)
    cut = Grid(IN.scale, IN.zero_point, IN.zero_point, 200)
    seen = run(
        [
            wide,
            Node("s", "channel_shuffle", ("w",), IN, {"groups": 3}),
            Node("k", "slice", ("s",), IN, {"start": 1, "stop": 4}),
            Node("p", "pad", ("k",), IN, {"padding": [1, 0, 2, 3]}),
            Node("c", "clip", ("p",), cut),
        ],
        {},
        x,
        "c",
    )
    q = torch.from_numpy(seen["q"])
    shuffled = torch.nn.ChannelShuffle(3)(torch.cat([q, q], 1))
    padded = F.pad(shuffled[:, 1:4], (0, 3, 1, 2), value=IN.zero_point)
    assert np.array_equal(seen["w"], torch.cat([q, q], 1).numpy())
    assert np.array_equal(seen["p"], padded.numpy())
    assert np.array_equal(seen["c"], padded.clamp(IN.zero_point, 200).numpy())


def test_half_is_rounded_to_even_and_the_ends_hold() -> None:
    grid = Grid(0.25, 100)
    nodes = [
        Node("q", "quantize", ("input",), grid),
        Node("m", "mean", ("q",), grid, {"keep_dimensions": False}),
        Node("d", "dequantize", ("m",)),
    ]
    steps = np.float32([[0.5, 1.5, -0.5], [2.5, -2.5, -1.5], [1e30, -1e30, 0.25]])
    logits = interpret(Graph.of(nodes, {}), (steps * np.float32(0.25)).reshape(3, 3, 1, 1))
    expected = np.float32([[0, 2, 0], [2, -2, -2], [155, -100, 0]]) * np.float32(0.25)
    assert np.array_equal(logits, expected)


def test_input_affine_is_a_product_and_a_sum(x: np.ndarray) -> None:
    gain, offset = [0.458, 0.448, 0.45], [-0.03, -0.088, -0.188]
    nodes = [
        Node("a", "affine", ("input",), None, {"gain": gain, "offset": offset}),
        Node("q", "quantize", ("a",), IN),
        Node("m", "mean", ("q",), IN, {"keep_dimensions": False}),
        Node("d", "dequantize", ("m",)),
    ]
    seen: dict[str, np.ndarray] = {}
    interpret(Graph.of(nodes, {}), x, seen.__setitem__)
    exact = x * np.float64(gain).reshape(3, 1, 1) + np.float64(offset).reshape(3, 1, 1)
    check(seen["q"], torch.from_numpy(exact), IN)


def test_an_output_can_be_replaced(x: np.ndarray) -> None:
    nodes = [
        Node("q", "quantize", ("input",), IN),
        Node("m", "mean", ("q",), IN, {"keep_dimensions": False}),
        Node("d", "dequantize", ("m",)),
    ]
    other = np.full((2, 3, 11, 9), 200, np.uint8)
    logits = interpret(Graph.of(nodes, {}), x, lambda name, _: other if name == "q" else None)
    assert np.array_equal(logits, np.full((2, 3), 87 * np.float32(IN.scale)))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 3, 8, 8)), "float32"),
        (np.zeros((1, 4, 8, 8), np.float32), r"\[N, 3, H, W\]"),
        (np.zeros((3, 8, 8), np.float32), r"\[N, 3, H, W\]"),
        (np.full((1, 3, 8, 8), np.nan, np.float32), "NaN"),
        (np.zeros((1, 3, 2, 8), np.float32), "do not fit"),
    ],
)
def test_images_that_no_model_takes(images: np.ndarray, message: str) -> None:
    pool = {"kernel": [3, 3], "stride": [2, 2], "padding": [0, 0], "dilation": [1, 1]}
    nodes = [
        Node("q", "quantize", ("input",), IN),
        Node("p", "max_pool2d", ("q",), IN, {**pool, "ceil_mode": False}),
        Node("m", "mean", ("p",), IN, {"keep_dimensions": False}),
        Node("d", "dequantize", ("m",)),
    ]
    with pytest.raises(ArgumentError, match=message):
        interpret(Graph.of(nodes, {}), images)
