"""Graphs that hold many small cases side by side, for tests of what runs graphs.

Each case is a branch from the rounded picture: its own nodes, then `<case>.seen`, which adds the
result to itself, so that every integer of it is rounded once more and compared, then its mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

import qzoo
from qzoo.artifact.format import ModelInfo
from qzoo.artifact.grid import Grid
from qzoo.artifact.operations import FUNCTIONS
from tests.helpers.graphs import PRESET, Maker

#: Of the rounded picture, and of most results.
IN, OUT = Grid(0.02, 113), Grid(0.033, 97)
SIZE = (13, 11)


class Branches(Maker):
    """Collects branches."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[str] = []
        self.add("q", "quantize", "input", IN)
        self.conv("wide", "q", (12, 3, 1, 1), Grid(0.025, 120))

    def end(self, name: str, *, flat: bool = False) -> None:
        """Ends the branch whose last node is called `name`; `flat` says that it has no pixels."""
        grid = self.nodes[name].grid
        assert grid is not None
        target = Grid(2.3 * grid.scale, 101)
        self.add(f"{name}.seen", "add", f"{name} {name}", target, relu=False)
        if flat:
            self.ends.append(f"{name}.seen")
            return
        self.add(f"{name}.mean", "mean", f"{name}.seen", target, keep_dimensions=False)
        self.ends.append(f"{name}.mean")

    def artifact(self) -> qzoo.Artifact:
        """Returns all branches as one artifact."""
        self.add("wide.mean", "mean", "wide", self.nodes["wide"].grid, keep_dimensions=False)
        self.add("joined", "concat", " ".join(["wide.mean", *self.ends]), Grid(0.05, 128))
        self.add("end", "dequantize", "joined")
        info = ModelInfo(None, backend="onednn", transforms=PRESET)
        return qzoo.Artifact.from_graph(self.nodes.values(), self.tensors, info, input_size=SIZE)


def convolutions() -> Branches:
    """Weights of all kinds, and all geometries."""
    b = Branches()
    geometries: dict[str, dict[str, object]] = {
        "plain": {},
        "ahead": {"padding": [2, 0, 0, 1]},
        "behind": {"stride": [2, 2], "padding": [0, 0, 1, 1]},
        "sparse": {"dilation": [2, 1], "stride": [1, 2]},
        "grouped": {"groups": 4},
        "depthwise": {"groups": 12, "padding": [1, 0, 2, 1]},
        "bounded": {"padding": [1, 1, 1, 1]},
    }
    for name, geometry in geometries.items():
        grid = replace(OUT, low=40, high=170) if name == "bounded" else OUT
        if name == "grouped":
            grid, geometry = replace(OUT, low=OUT.zero_point), {**geometry, "relu": True}
        groups = geometry.get("groups", 1)
        assert isinstance(groups, int)
        b.conv(name, "wide", (12, 12 // groups, 3, 3), grid, **geometry)
        b.end(name)
    for name in ("single", "zeros", "bare", "real", "real_bare"):
        b.conv(name, "wide", (8, 12, 3, 3), OUT)
        if name == "single":
            b.tensors[f"{name}.weight_scale"] = np.array(0.0021, np.float32)
        if name == "zeros":
            b.tensors[f"{name}.weight_zero_point"] = np.arange(-4, 4, dtype=np.int8)
        if "bare" in name:
            del b.tensors[f"{name}.bias"]
        if "real" in name:
            del b.tensors[f"{name}.weight_scale"]
            b.tensors[f"{name}.weight"] = b.random.normal(0, 0.2, (8, 12, 3, 3)).astype(np.float32)
            b.nodes[name] = replace(b.nodes[name], float=True)
        b.end(name)
    b.add("features", "mean", "wide", Grid(0.01, 120), keep_dimensions=False)
    b.conv("linear", "features", (5, 12), OUT)
    b.end("linear", flat=True)
    return b


def pools() -> Branches:
    """Pools whose windows lie in, over and behind the edge, over zero points at 0 and not."""
    b = Branches()
    b.add("zero", "table", "wide", Grid(0.02, 0), function="relu")
    b.add("high", "clip", "wide", replace(b.nodes["wide"].grid, low=130, high=250))  # type: ignore[type-var]
    for source in ("wide", "zero", "high"):
        grid = b.nodes[source].grid
        assert grid is not None
        for kernel, stride, padding, ceil in (
            ([2, 2], [2, 2], [0, 0], False),
            ([3, 3], [2, 2], [1, 1], True),
            ([3, 2], [2, 3], [1, 1], True),
            ([2, 2], [2, 2], [1, 1], True),
        ):
            window = {"kernel": kernel, "stride": stride, "padding": padding, "ceil_mode": ceil}
            about = f"{source}_{kernel}_{stride}_{padding}_{ceil}".replace(" ", "")
            for included in (False, True):
                name = f"{'with' if included else 'without'}_{about}"
                b.add(name, "avg_pool2d", source, OUT, **window, count_include_pad=included)
                b.end(name)
            name = f"max_{about}"
            b.add(name, "max_pool2d", source, grid, **window, dilation=[1, 1])
            b.end(name)
    grid = b.nodes["high"].grid
    around = {"kernel": [3, 3], "stride": [1, 1], "padding": [1, 1], "ceil_mode": False}
    b.add("kept_low", "avg_pool2d", "high", grid, **around, count_include_pad=True)
    b.end("kept_low")
    b.add("far", "max_pool2d", "wide", b.nodes["wide"].grid, **around, dilation=[2, 1])
    b.end("far")
    b.add("all", "mean", "wide", OUT, keep_dimensions=True)
    b.end("all")
    return b


def moves() -> Branches:
    """What moves integers, within bounds or not; and what joins tensors."""
    b = Branches()
    grid = b.nodes["wide"].grid
    assert grid is not None
    narrow = replace(grid, low=90, high=130)
    b.add("clip", "clip", "wide", narrow)
    b.end("clip")
    b.add("cut", "clip", "wide", replace(grid, low=grid.zero_point))
    b.end("cut")
    b.add("same", "clip", "clip", replace(grid, low=80))
    b.end("same")
    for name, inputs, target in (
        ("equal", "wide wide", grid),
        ("narrow", "wide wide", narrow),
        ("other", "wide clip", OUT),
        ("mixed", "wide q", replace(OUT, low=OUT.zero_point)),
    ):
        b.add(name, "concat", inputs, target)
        b.end(name)
        b.add(f"{name}_shuffled", "channel_shuffle", name, target, groups=3)
        b.end(f"{name}_shuffled")
    b.add("shuffled", "channel_shuffle", "wide", narrow, groups=4)
    b.end("shuffled")
    for name, start, stop in (("first", 0, 5), ("rest", 5, 12)):
        b.add(name, "slice", "wide", grid, start=start, stop=stop)
        b.end(name)
    b.add("middle", "slice", "q", replace(IN, low=100), start=1, stop=2)
    b.end("middle")
    b.add("whole", "slice", "clip", narrow, start=0, stop=12)
    b.end("whole")
    b.add("pad", "pad", "wide", grid, padding=[1, 0, 2, 3])
    b.end("pad")
    above = replace(grid, low=125)
    b.add("above", "clip", "wide", above)
    b.add("pad_above", "pad", "above", above, padding=[0, 1, 0, 0])
    b.end("pad_above")
    height, width = SIZE
    b.add("reshaped", "reshape", "wide", grid, shape=[6, 2 * height, width])
    b.end("reshaped")
    b.add("flat", "flatten", "clip", narrow)
    b.end("flat", flat=True)
    b.add("pixel", "mean", "wide", grid, keep_dimensions=True)
    b.add("sum", "add", "wide pixel", replace(OUT, low=50), relu=False)
    b.end("sum")
    b.add("product", "mul", "pixel wide", Grid(0.003, 77))
    b.end("product")
    b.add("difference", "add", "wide pixel", replace(OUT, low=OUT.zero_point), relu=True)
    b.end("difference")
    return b


def functions() -> Branches:
    """Every function, with bounds and without; tables of other roundings; one read in float."""
    b = Branches()
    for function in FUNCTIONS:
        for name, grid in (
            (function, Grid(0.011, 60)),
            (f"{function}_cut", Grid(0.02, 50, 50, 200)),
        ):
            b.add(name, "table", "wide", grid, function=function)
            b.end(name)
    b.add("other", "table", "wide", Grid(0.01, 20), function="silu")
    table = b.tensors["other.table"]
    # Each entry a step off: runtimes would be another step from it if they computed the function.
    b.tensors["other.table"] = np.where(table < 255, table + 1, 254).astype(np.uint8)
    b.end("other")
    b.add("gate", "table", "wide", Grid(1 / 256, 0), function="hard_sigmoid")
    b.add("gated", "mul", "wide gate", OUT)
    b.end("gated")
    return b


#: Names that ONNX graphs have of their own.
NAMES = (
    "logits",
    "float",
    "Relu",
    "uint8_113",
    "wide.weight",
    "wide.integers",
    "/block/conv,1",
    "x.in",
)


def names() -> Branches:
    """Nodes called like others of the file."""
    b = Branches()
    for name in NAMES:
        b.conv(name, "wide", (4, 12, 1, 1), replace(OUT, low=60))
        b.end(name)
    return b


def affines() -> Branches:
    """Two inputs, each normalized in its own way."""
    b = Branches()
    for name, gain in (("first", 0.5), ("second", 1.7)):
        b.add(f"{name}_affine", "affine", "input", gain=[gain, 1.0, 0.9], offset=[0.1, -0.2, gain])
        b.add(name, "quantize", f"{name}_affine", replace(IN, low=IN.zero_point))
        b.end(name)
    return b


GRAPHS: dict[str, Callable[[], Branches]] = {
    made.__name__: made for made in (convolutions, pools, moves, functions, names, affines)
}
