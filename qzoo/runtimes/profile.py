"""Where the time of a model goes, node by node: `compiled.profile()` on the runtime "libqzoo"."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._core.files import write_atomically
from .._core.optional import require
from ..artifact.graph import INPUT, Graph, Node
from ..artifact.grid import Grid
from ..artifact.operations import Shape
from ..libqzoo.binding import Model

#: The layer whose speed counts as the machine's peak: channels in and out, and pixels.
PEAK_CHANNELS, PEAK_SIDE, PEAK_CALLS = 1024, 28, 20
#: Nodes that take less of the time than this share one bar of the chart.
SMALL = 0.003


@dataclass(frozen=True)
class NodeProfile:
    """One node's part of a profile.

    Attributes:
        name: The node.
        op: Its operation.
        shape: Of its output for one image.
        ms: Median of its milliseconds per image; 0 where it is computed together with an earlier
            node, or needs no computing.
        products: Its multiply-adds per image.
        share: Of the time of all nodes, 0 to 1.
        share_of_peak: Products per second divided by the peak, those of the nodes that are computed
            together with it included.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    ms: float
    products: int
    share: float
    share_of_peak: float


@dataclass(frozen=True)
class Profile:
    """Time, products and share of the machine's peak of each node; `print` it to see the table.

    Attributes:
        model: Name of the model.
        threads: Threads that compute one image together.
        rows: One per node, in the order in which they run.
        peak: Products per second of the threads together, at most: one thread's speed in a large
            convolution (1x1, 1024 to 1024 channels, 28x28 pixels) that libqzoo runs before and
            afterwards, the best of 40 calls, times the threads.
    """

    model: str
    threads: int
    rows: tuple[NodeProfile, ...]
    peak: float

    @property
    def ms(self) -> float:
        """Milliseconds of all nodes together, per image."""
        return sum(row.ms for row in self.rows)

    @property
    def products(self) -> int:
        """Multiply-adds of all nodes together, per image."""
        return sum(row.products for row in self.rows)

    @property
    def share_of_peak(self) -> float:
        """Products per second of all nodes together, divided by the peak."""
        return _share(self.products, self.ms, self.peak)

    def __str__(self) -> str:
        wide = max(len(row.name) for row in self.rows)
        lines = [
            f"{self._title()}: {self._sum()}",
            f"{'node':{wide}}  {'operation':<15}  {'output':<13}  {'ms':>8}  {'time':>6}  "
            f"{'million products':>16}  {'of peak':>7}",
        ]
        total = NodeProfile("together", "", (), self.ms, self.products, 1.0, self.share_of_peak)
        for row in (*self.rows, total):
            products = f"{row.products / 1e6:16.2f}"
            if row.ms:
                products += f"  {row.share_of_peak:>7.1%}"
            lines.append(
                f"{row.name:{wide}}  {row.op:<15}  {'x'.join(map(str, row.shape)):<13}  "
                f"{row.ms:8.4f}  {row.share:>6.1%}  {products if row.products else ''}".rstrip()
            )
        return "\n".join(lines)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draws a bar for each node that takes time; the others share the last one.

        The dark part of a bar is the time that the node's products would take at the peak.

        Args:
            path: The PNG file to write.

        Raises:
            MissingDependencyError: The package matplotlib is not installed.
            ArtifactError: The file cannot be written.
        """
        # Not pyplot, which keeps state for the process.
        figures = require("matplotlib.figure", "plot", "The chart of a profile")
        bars = [(f"{r.name} ({r.op})", [r]) for r in self.rows if r.share >= SMALL]
        if rest := [row for row in self.rows if row.share < SMALL]:
            bars.append((f"{len(rest)} more", rest))
        figure = figures.Figure(figsize=(9, 1.6 + 0.19 * len(bars)), layout="constrained")
        axes = figure.subplots()
        times = [sum(row.ms for row in rows) for _, rows in bars]
        axes.barh(range(len(bars)), times, color="#a8cdbd", label="time")
        at_peak = [sum(row.ms * row.share_of_peak for row in rows) for _, rows in bars]
        axes.barh(range(len(bars)), at_peak, color="#2a7f62", label="its products at the peak")
        axes.set_yticks(range(len(bars)), [name for name, _ in bars], fontsize=7)
        axes.set_ylim(len(bars) - 0.4, -0.6)  # the first node on top
        axes.set_xlabel("milliseconds")
        axes.set_title(f"{self._title()}\n{self._sum()}", fontsize=10)
        figure.legend(loc="outside lower center", ncols=2)
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=120)
        write_atomically(path, content.getvalue())

    def _title(self) -> str:
        return f"{self.model}, one image, {self.threads} thread{'s' * (self.threads > 1)}"

    def _sum(self) -> str:
        return (
            f"{self.ms:.3f} ms, {self.share_of_peak:.0%} of the peak of {self.peak / 1e9:.0f} "
            "billion products a second"
        )


def profile(
    model: Model, name: str, images: np.ndarray, threads: int = 1, repeats: int = 20
) -> Profile:
    """Measures the nodes of a model, image by image.

    Args:
        model: In libqzoo.
        name: Of the model, for the title.
        images: float32 [N, 3, H, W], in one piece of memory.
        threads: Threads that compute an image together.
        repeats: How often each image is timed, after one round that is not.

    Raises:
        ArgumentError: The model takes no such images.
    """
    height, width = images.shape[2:]
    peak = measure_peak()
    session = model.session(height, width, threads=threads, times=True)
    times = []
    for image in [*images] * (1 + repeats):
        session.run(image[None])
        times.append(session.times())
    medians = 1e3 * np.median(times[len(images) :], axis=0)
    peak = threads * max(peak, measure_peak())  # other work may have disturbed one of them
    return Profile(name, threads, _rows(model.graph, (height, width), medians.tolist(), peak), peak)


def _rows(
    graph: Graph, size: tuple[int, int], times: Sequence[float], peak: float
) -> tuple[NodeProfile, ...]:
    """Returns a row for each node, given its milliseconds."""
    shapes = graph.sized(*size)
    own = {node.name: products(node, shapes[node.name], graph) for node in graph.nodes}
    # A node that takes no time was computed with the one that feeds it.
    together: dict[str, int] = {}
    owners = {INPUT: INPUT}
    for node, ms in zip(graph.nodes, times, strict=True):
        owner = owners[node.name] = node.name if ms else owners[node.inputs[0]]
        together[owner] = together.get(owner, 0) + own[node.name]
    return tuple(
        NodeProfile(
            name=node.name,
            op=node.op,
            shape=tuple(size for size in shapes[node.name] if isinstance(size, int)),
            ms=ms,
            products=own[node.name],
            share=ms / sum(times),
            share_of_peak=_share(together[node.name], ms, peak) if ms else 0.0,
        )
        for node, ms in zip(graph.nodes, times, strict=True)
    )


def products(node: Node, shape: Shape, graph: Graph) -> int:
    """Returns the multiply-adds of a node for one image: only layers with weights have any.

    Args:
        node: The node.
        shape: Of its output, for images of a fixed size (`Graph.sized`).
        graph: Its graph.
    """
    if not node.weighted:
        return 0
    values = math.prod(size for size in shape if isinstance(size, int))
    return values * math.prod(graph.tensors[f"{node.name}.weight"].shape[1:])


def measure_peak() -> float:
    """Returns the products per second of one thread in a large convolution, the best of 20 calls.

    No processor says what it could do at most; this layer is as good for one as they get: nothing
    but products, with operands that stay in the caches.
    """
    grid, channels, random = Grid(0.02, 128), PEAK_CHANNELS, np.random.default_rng(0)
    one: dict[str, Any] = {"relu": False, "stride": [1, 1], "padding": [0, 0, 0, 0]}
    one |= {"dilation": [1, 1], "groups": 1}
    nodes = (
        Node("bytes", "quantize", (INPUT,), grid),
        Node("wide", "conv2d", ("bytes",), grid, one),
        Node("peak", "conv2d", ("wide",), grid, one),
        Node("mean", "mean", ("peak",), grid, {"keep_dimensions": False}),
        Node("logits", "dequantize", ("mean",)),
    )
    tensors: dict[str, np.ndarray] = {}
    for name, inputs in (("wide", 3), ("peak", channels)):
        tensors[f"{name}.weight"] = random.integers(-127, 128, (channels, inputs, 1, 1), np.int8)
        tensors[f"{name}.weight_scale"] = np.array(0.01 / inputs**0.5, np.float32)
    graph = Graph.of(nodes, tensors)
    session = Model(graph).session(PEAK_SIDE, PEAK_SIDE, threads=1, times=True)
    image = random.standard_normal((1, 3, PEAK_SIDE, PEAK_SIDE), np.float32)
    seconds = []
    for _ in range(PEAK_CALLS):
        session.run(image)
        seconds.append(float(session.times()[2]))
    return PEAK_SIDE**2 * channels**2 / min(seconds)


def _share(products: int, ms: float, peak: float) -> float:
    return products / (ms / 1e3 * peak)
