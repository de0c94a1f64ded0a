"""Graphs that hypothesis draws, for what must run any graph."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from qzoo.artifact.graph import Graph, Node, make_table
from qzoo.artifact.grid import Grid
from qzoo.artifact.operations import FUNCTIONS


def image(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(1, 3, height, width)).astype(np.float32)


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
