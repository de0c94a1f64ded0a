"""A graph that no builder makes, for tests of what runs any graph."""

from __future__ import annotations

import dataclasses

import numpy as np

import qzoo
from qzoo.artifact.format import ModelInfo
from qzoo.artifact.graph import Node, make_table
from qzoo.artifact.grid import Grid

PRESET = {
    "preset": "ImageClassification",
    "crop_size": 32,
    "resize_size": 36,
    "interpolation": "bilinear",
    "antialias": True,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}


class Maker:
    """Collects nodes and their tensors, from a seed."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: dict[str, Node] = {}
        self.tensors: dict[str, np.ndarray] = {}
        self.random = np.random.default_rng(seed)

    def add(
        self, name: str, op: str, inputs: str, grid: Grid | None = None, **more: object
    ) -> None:
        """Adds a node; `inputs` are names with spaces between them."""
        self.nodes[name] = Node(name, op, tuple(inputs.split()), grid, more)
        if op == "table":
            source = self.nodes[inputs].grid
            assert source is not None
            assert grid is not None
            self.tensors[f"{name}.table"] = make_table(str(more["function"]), source, grid)

    def conv(
        self, name: str, source: str, shape: tuple[int, ...], grid: Grid, **more: object
    ) -> None:
        """Adds a conv2d with a weight of this shape, or a linear."""
        self._weigh(name, shape)
        if len(shape) == 2:
            self.add(name, "linear", source, grid, relu=False)
            return
        pad = [n // 2 for n in shape[2:]] * 2
        usual = {"stride": [1, 1], "padding": pad, "dilation": [1, 1], "groups": 1, "relu": False}
        self.add(name, "conv2d", source, grid, **{**usual, **more})

    def _weigh(self, name: str, shape: tuple[int, ...]) -> None:
        out = shape[0]
        self.tensors[f"{name}.weight"] = self.random.integers(-127, 128, shape).astype(np.int8)
        scale = self.random.uniform(0.001, 0.004, out).astype(np.float32)
        self.tensors[f"{name}.weight_scale"] = scale
        self.tensors[f"{name}.bias"] = self.random.normal(size=out).astype(np.float32)


def any_graph() -> Maker:
    """Returns a net with a skip over two scales, a grouped convolution, a SiLU and a gate."""
    m = Maker()
    m.add("q", "quantize", "input", Grid(0.02, 120))
    stem = {"stride": [2, 2], "padding": [0, 0, 1, 1]}
    m.conv("stem", "q", (16, 3, 3, 3), Grid(0.03, 100), **stem)
    m.add("act", "table", "stem", Grid(0.017, 16), function="silu")
    m.conv("a", "act", (16, 4, 3, 3), Grid(0.025, 90, 90), groups=4, relu=True)
    halve = {"kernel": [2, 2], "stride": [2, 2], "padding": [0, 0], "ceil_mode": False}
    m.add("pool", "max_pool2d", "a", Grid(0.025, 90, 90), **halve, dilation=[1, 1])
    m.conv("b", "pool", (16, 16, 1, 1), Grid(0.02, 110))
    m.conv("short", "act", (16, 16, 1, 1), Grid(0.031, 77), stride=[2, 2])
    m.add("sum", "add", "b short", Grid(0.035, 97), relu=False)
    m.add("half", "slice", "sum", Grid(0.035, 97), start=2, stop=10)
    m.add("both", "concat", "half sum b", Grid(0.04, 99))
    m.add("all", "mean", "both", Grid(0.04, 99), keep_dimensions=True)
    m.conv("gate", "all", (40, 40, 1, 1), Grid(0.03, 128))
    m.add("sigmoid", "table", "gate", Grid(1 / 256, 0), function="sigmoid")
    m.add("scaled", "mul", "sigmoid both", Grid(0.02, 100))
    m.add("cut", "clip", "scaled", Grid(0.02, 100, 100, 230))
    around = {"kernel": [3, 3], "stride": [2, 2], "padding": [1, 1], "ceil_mode": False}
    m.add(
        "average", "avg_pool2d", "cut", Grid(0.02, 100, 100, 230), **around, count_include_pad=True
    )
    m.add("features", "mean", "average", Grid(0.01, 60), keep_dimensions=False)
    m.conv("head", "features", (5, 40), Grid(0.02, 128))
    m.add("logits", "dequantize", "head")
    return m


def any_artifact() -> qzoo.Artifact:
    """Returns the graph as an artifact without an architecture."""
    made = any_graph()
    info = ModelInfo(None, backend="onednn", transforms=PRESET, classes=list("abcde"))
    return qzoo.Artifact.from_graph(made.nodes.values(), made.tensors, info)


def changed(made: Maker, node: str, /, **fields: object) -> list[Node]:
    """Returns the nodes with other fields in one of them."""
    nodes = dict(made.nodes)
    nodes[node] = dataclasses.replace(nodes[node], **fields)  # type: ignore[arg-type]
    return list(nodes.values())


def every_operation() -> qzoo.Artifact:
    """Returns an artifact with every operation, and tensors in all the forms that there are."""
    m = Maker(5)
    m.add("scaled", "affine", "input", gain=[1, 0.5, 1.5e-3], offset=[0, -0.25, 1e-9])
    m.add("q", "quantize", "scaled", Grid(0.02, 120))
    m.conv("zeros", "q", (8, 3, 3, 3), Grid(0.03, 100), stride=[2, 1], padding=[0, 2, 1, 1])
    m.tensors["zeros.weight_zero_point"] = np.arange(-4, 4, dtype=np.int8)
    m.conv("double", "zeros", (8, 4, 1, 1), Grid(0.03, 100), groups=2)
    m.tensors["double.weight_scale"] = np.array(0.1234567890123)
    m.conv("faint", "double", (8, 8, 1, 1), Grid(0.03, 3, 3, 200), relu=True)
    m.tensors["faint.weight_scale"][[1, 5]] = 2.0**-43, 2e-38
    m.tensors["faint.weight_zero_point"] = np.full(8, 7, np.int8)
    del m.tensors["faint.bias"]
    m.add("wide", "pad", "faint", Grid(0.03, 3, 3, 200), padding=[1, 0, 2, 1])
    m.add("mixed", "channel_shuffle", "wide", Grid(0.03, 3, 3, 200), groups=4)
    m.add("part", "slice", "mixed", Grid(0.03, 3, 3, 200), start=1, stop=5)
    m.add("both", "concat", "part mixed", Grid(0.04, 99))
    window = {"kernel": [3, 2], "stride": [2, 1], "padding": [1, 0], "ceil_mode": True}
    m.add("most", "max_pool2d", "both", Grid(0.04, 99), **window, dilation=[1, 2])
    m.add("about", "avg_pool2d", "most", Grid(0.03, 88), **window, count_include_pad=False)
    m.add("curve", "table", "about", Grid(0.02, 9), function="gelu")
    m.add("cut", "clip", "curve", Grid(0.02, 9, 2, 250))
    m.add("mean", "mean", "cut", Grid(0.02, 30), keep_dimensions=True)
    m.add("gated", "mul", "mean cut", Grid(0.02, 30))
    m.add("sum", "add", "gated cut", Grid(0.02, 30, 30), relu=True)
    m.add("mean2", "mean", "sum", Grid(0.02, 30), keep_dimensions=True)
    m.add("pairs", "reshape", "mean2", Grid(0.02, 30), shape=[6, 2])
    m.add("flat", "flatten", "pairs", Grid(0.02, 30))
    m.conv("head", "flat", (5, 12), Grid(0.02, 128))
    m.tensors["head.weight"] = m.random.normal(size=(5, 12)).astype(np.float32)
    del m.tensors["head.weight_scale"]
    m.nodes["head"] = dataclasses.replace(m.nodes["head"], float=True)
    m.add("logits", "dequantize", "head")
    names = ["tench", "Gruß", "魚", '"quoted"', "a\nb"]
    info = ModelInfo(None, backend="onednn", transforms=PRESET, classes=names)
    return qzoo.Artifact.from_graph(m.nodes.values(), m.tensors, info, input_size=(32, 48))
