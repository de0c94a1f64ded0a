"""The graph of an artifact: which operation feeds which, and the grid that each output lies on."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..errors import ArgumentError, ArtifactError
from .grid import Grid
from .layers import LARGEST_SCALE, LARGEST_VALUE, SMALLEST_SCALE, Layer
from .operations import FUNCTIONS, OPERATIONS, Shape
from .shapes import Open, Size

#: What nodes call the graph's input, float32 [batch, 3, height, width].
INPUT = "input"
#: Of nodes, of inputs of one node, and of letters in a name. The largest model of the zoo has 600
#: nodes, and its longest name 60 letters.
MAX_NODES, MAX_INPUTS, MAX_NAME_LENGTH = 10_000, 64, 200
#: Of a size, such as the channels, and of the values that a node makes of an image.
MAX_SIZE, MAX_VALUES = 2**26, 2**30
#: Heights and widths of images, in pixels, that a graph without a size of its own is tried with.
_USUAL_SIZES = (224, 256, 299, 320, 384, 512, 32, 64, 96, 128)
#: Integer sums are held in 32 bits.
LARGEST_SUM = 2**31 - 1
_SMALLEST_FLOAT = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Node:
    """One operation of a graph.

    Attributes:
        name: Unique in the graph; tensors of the node begin with it and a dot.
        op: A name of `qzoo.artifact.operations.OPERATIONS`.
        inputs: Names of the nodes that feed it, or `INPUT`.
        grid: What its output is rounded to; None where the output is float.
        attributes: JSON values, as the operation has them.
        float: Whether a conv2d or linear keeps float32 weights.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    grid: Grid | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    float: bool = False

    @property
    def weighted(self) -> bool:
        """Whether the node has a weight."""
        return OPERATIONS[self.op].weighted

    def reach(self, sources: Sequence[Grid | None]) -> tuple[int, int]:
        """Returns the smallest and the largest integer of the output before the bounds cut it.

        Args:
            sources: The grid of each input.
        """
        assert self.grid is not None
        moves, ends = OPERATIONS[self.op].within or self.op == "concat", list[int]()
        for grid in sources:
            if not moves or grid is None or not grid.like(self.grid):
                return 0, 255
            ends += [grid.low, grid.high]
        if any(self.attributes.get("padding", ())):  # which stands for 0.0
            ends.append(self.grid.zero_point)
        return min(ends), max(ends)

    def to_json(self) -> dict[str, Any]:
        """Returns the node as a JSON object."""
        data: dict[str, Any] = {"name": self.name, "op": self.op, "inputs": list(self.inputs)}
        data |= {key: self.attributes[key] for key in OPERATIONS[self.op].attributes}
        if self.float:
            data["float"] = True
        if self.grid is not None:
            data |= vars(self.grid)
        return data

    @classmethod
    def from_json(cls, data: Any) -> Node:
        """Reads a node from its JSON object.

        Raises:
            ArtifactError: A field is missing, unknown, of the wrong type or out of range.
        """
        if not isinstance(data, dict) or not isinstance(data.get("name"), str):
            raise ArtifactError("A node of the graph is no table or has no name.")
        name, op = data["name"], data.get("op")
        if not 0 < len(name) <= MAX_NAME_LENGTH:
            raise ArtifactError(f"Node {name[:40]!r} has an empty name, or a very long one.")
        if not isinstance(op, str) or op not in OPERATIONS:
            raise ArtifactError(f"Node {name!r} has an unknown operation {str(op)[:40]!r}.")
        operation = OPERATIONS[op]
        numbers = () if operation.float_out else ("scale", "zero_point", "low", "high")
        wanted = {"name", "op", "inputs", *operation.attributes, *numbers}
        kept = operation.weighted and data.get("float") is True
        if set(data) != (wanted | {"float"} if kept else wanted):
            raise ArtifactError(
                f"Node {name!r} should have exactly the fields {', '.join(sorted(wanted))}."
            )
        inputs = data["inputs"]
        if not (
            isinstance(inputs, list)
            and len(inputs) <= MAX_INPUTS
            and all(isinstance(i, str) for i in inputs)
        ):
            raise ArtifactError(f"Node {name!r} has inputs that are no list of names.")
        grid = Grid(*(data[key] for key in numbers)) if numbers else None
        attributes = {key: data[key] for key in operation.attributes}
        return cls(name, op, tuple(inputs), grid, attributes, kept)


@dataclass(frozen=True)
class Graph:
    """The nodes of a model in the order in which they run.

    Attributes:
        nodes: Each after those that feed it; the last one's output is the graph's.
        tensors: `<node>.weight` and so on, as docs/artifact.md lists them.
        size: Height and width of the only images that the model takes, in pixels, or None.
        shapes: The shape of every node's output by name, and of `INPUT`.
    """

    nodes: tuple[Node, ...]
    tensors: Mapping[str, np.ndarray] = field(default_factory=dict, compare=False, repr=False)
    size: tuple[int, int] | None = None
    shapes: Mapping[str, Shape] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(
        cls,
        nodes: Iterable[Node],
        tensors: Mapping[str, np.ndarray],
        size: tuple[int, int] | None = None,
    ) -> Graph:
        """Checks nodes and tensors from end to end.

        Args:
            nodes: In the order in which they run.
            tensors: `<node>.weight` and so on, as docs/artifact.md lists them.
            size: Height and width of the only images that the model takes, in pixels; None where
                it takes any that are not too small.

        Raises:
            ArtifactError: Something is missing, unknown, superfluous, out of range, or does not
                fit together; the message names the node.
        """
        nodes = tuple(nodes)
        if not 0 < len(nodes) <= MAX_NODES:
            raise ArtifactError(f"The graph has {len(nodes)} nodes; 1 to {MAX_NODES} are possible.")
        check = _Check(tensors, size or (Open("height"), Open("width")))
        for node in nodes:
            check.node(node)
        check.end(nodes[-1])
        graph = cls(nodes, tensors, size, check.shapes)
        graph._check_some_size()
        return graph

    def _check_some_size(self) -> None:
        """Checks that the graph fits together for images of one usual size at least."""
        for side in (self.size,) if self.size else ((n, n) for n in _USUAL_SIZES):
            try:
                self.sized(*side)
            except ArgumentError as error:
                problem = error
            else:
                return
        raise ArtifactError(f"The graph fits no usual size of images. {problem}")

    def sized(self, height: int, width: int) -> dict[str, Shape]:
        """Returns the shapes of `shapes` for images of one size.

        Raises:
            ArgumentError: The model takes no such images.
        """
        if self.size not in (None, (height, width)):
            assert self.size is not None
            raise ArgumentError(
                f"The model takes images of {self.size[0]}x{self.size[1]} pixels only, not "
                f"{height}x{width}."
            )
        shapes: dict[str, Shape] = {INPUT: (Open("batch"), 3, height, width)}
        for node in self.nodes:
            own = {"weight": self.tensors[f"{node.name}.weight"]} if node.weighted else {}
            inputs = [shapes[name] for name in node.inputs]
            try:
                shapes[node.name] = OPERATIONS[node.op].shape(node.attributes, own, inputs)
            except ArtifactError as error:
                raise ArgumentError(
                    f"Images of {height}x{width} pixels do not fit the model: its node "
                    f"{node.name!r} ({node.op}) {error}."
                ) from None
            # A size of the batch is no matter of the images.
            if (
                math.prod(size for size in shapes[node.name][1:] if isinstance(size, int))
                > MAX_VALUES
            ):
                raise ArgumentError(
                    f"Images of {height}x{width} pixels do not fit the model: its node "
                    f"{node.name!r} makes more than {MAX_VALUES:,} values of each."
                )
        return shapes

    def with_numbers(self, layers: Mapping[str, Layer], tensors: Mapping[str, np.ndarray]) -> Graph:
        """Returns the graph with these numbers in its layers.

        Args:
            layers: Node name to layer: its scale, its zero point, and whether it is kept in float.
            tensors: Of these nodes, without tables.

        Raises:
            ArtifactError: They do not fit the graph.
        """
        nodes: dict[str, Node] = {}
        own = dict(tensors)
        for old in self.nodes:
            node, layer = old, layers.get(old.name)
            source = nodes[old.inputs[0]].grid if old.inputs[0] in nodes else None
            if old.grid is not None:
                grid = old.grid
                if source is not None and self._follows(old):
                    grid = replace(grid, scale=source.scale, zero_point=source.zero_point)
                elif layer is not None:
                    grid = replace(grid, scale=layer.scale, zero_point=layer.zero_point)
                if old.grid.low == old.grid.zero_point:  # negative results are cut
                    grid = replace(grid, low=grid.zero_point)
                node = replace(old, grid=grid, float=layer is not None and layer.float)
            nodes[old.name] = node
            if node.op == "table" and source is not None and node.grid is not None:
                key = f"{node.name}.table"
                same = node == old and source == self._grids[old.inputs[0]]
                function = node.attributes["function"]
                own[key] = self.tensors[key] if same else make_table(function, source, node.grid)
        return Graph.of(nodes.values(), own, self.size)

    def _follows(self, node: Node) -> bool:
        """Whether a node's grid is that of its input, whatever it is."""
        operation, source = OPERATIONS[node.op], self._grids.get(node.inputs[0])
        return operation.keeps_grid or (operation.averages and source == node.grid)

    @functools.cached_property
    def _grids(self) -> dict[str, Grid | None]:
        return {node.name: node.grid for node in self.nodes}

    @property
    def output(self) -> Node:
        """The node whose output is the graph's: float32 [batch, classes]."""
        return self.nodes[-1]


def _is_text(name: str) -> bool:
    """Whether a file can hold a name: halves of surrogate pairs have no UTF-8."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


class _Check:
    """Walks once through a graph and checks every node against those before it."""

    def __init__(self, tensors: Mapping[str, np.ndarray], size: tuple[Size, Size]) -> None:
        self.tensors, self.used = tensors, set[str]()
        self.seen: dict[str, Node] = {}
        self.read: set[str] = set()
        self.shapes: dict[str, Shape] = {INPUT: (Open("batch"), 3, *size)}

    def node(self, node: Node) -> None:
        name = node.name
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_LENGTH or not _is_text(name):
            raise ArtifactError(f"A node has the impossible name {str(name)[:40]!r}.")
        if not isinstance(node.op, str) or node.op not in OPERATIONS:
            raise ArtifactError(f"Node {name!r} has an unknown operation {str(node.op)[:40]!r}.")
        operation = OPERATIONS[node.op]
        if name in self.shapes:
            raise ArtifactError(f"Two nodes of the graph are called {name!r}.")
        if set(node.attributes) != set(operation.attributes):
            wanted = ", ".join(sorted(operation.attributes)) or "none"
            raise ArtifactError(
                f"Node {name!r} ({node.op}) has other attributes than it should: {wanted}."
            )
        count = len(node.inputs)
        if (count != operation.inputs) if operation.inputs else (count < 2):
            takes = operation.inputs or "two or more"
            raise ArtifactError(f"Node {name!r} has {count} inputs; {node.op} takes {takes}.")
        for source in node.inputs:
            if source not in self.shapes:
                raise ArtifactError(
                    f"Node {name!r} reads {source[:40]!r}, which no earlier node is called."
                )
            given = self.seen.get(source)
            real = given is None or OPERATIONS[given.op].float_out
            if real != operation.float_in:
                raise ArtifactError(
                    f"Node {name!r} ({node.op}) reads {source!r}, which is "
                    f"{'float' if real else 'quantized'}; it takes the other."
                )
        self.read.update(node.inputs)
        for key, good in operation.attributes.items():
            if not good(node.attributes[key]):
                shown = str(node.attributes[key])[:40]
                raise ArtifactError(f"Node {name!r} has the impossible {key} {shown!r}.")
        self._grid(node)
        own = self._own_tensors(node) if node.weighted or node.op == "table" else {}
        try:
            shape = operation.shape(node.attributes, own, [self.shapes[i] for i in node.inputs])
        except ArtifactError as error:
            raise ArtifactError(f"Node {name!r} ({node.op}) {error}.") from None
        if max((size for size in shape if isinstance(size, int)), default=0) > MAX_SIZE:
            raise ArtifactError(f"Node {name!r} has an output of absurd size.")
        if node.weighted and not node.float:
            self._sums(node, own)
        self.shapes[name] = shape
        self.seen[name] = node

    def end(self, last: Node) -> None:
        if extra := sorted(set(self.tensors) - self.used):
            raise ArtifactError(f"Tensor {extra[0]!r} belongs to no node of the graph.")
        if idle := [n for n in self.seen if n not in self.read and n != last.name]:
            raise ArtifactError(f"Node {idle[0]!r} feeds no other, and is not the last.")
        if last.op != "dequantize" or len(self.shapes[last.name]) != 2:
            raise ArtifactError("The graph does not end in a dequantize of [batch, classes].")

    def _grid(self, node: Node) -> None:
        grid = node.grid
        if OPERATIONS[node.op].float_out:
            if grid is not None:
                raise ArtifactError(f"Node {node.name!r} is float and has a scale.")
            return
        if grid is None:
            raise ArtifactError(f"Node {node.name!r} has no scale and zero point.")
        if not (type(grid.scale) in (int, float) and SMALLEST_SCALE <= grid.scale <= LARGEST_SCALE):
            raise ArtifactError(
                f"Node {node.name!r} has the impossible scale {str(grid.scale)[:40]}: it must be a "
                f"number from {SMALLEST_SCALE:.2g} to {LARGEST_SCALE:.2g}."
            )
        whole = (grid.low, grid.zero_point, grid.high)
        if not all(type(n) is int and 0 <= n <= 255 for n in whole) or grid.low > grid.high:
            raise ArtifactError(
                f"Node {node.name!r} has an impossible zero point or bounds: they are whole "
                "numbers from 0 to 255, the low bound not above the high one."
            )
        if node.attributes.get("relu") and grid.low < grid.zero_point:
            raise ArtifactError(f"Node {node.name!r} has a relu and a bound below its zero point.")
        if OPERATIONS[node.op].keeps_grid:
            source = self.seen[node.inputs[0]].grid
            assert source is not None
            if not source.like(grid):
                raise ArtifactError(
                    f"Node {node.name!r} ({node.op}) moves integers, so that its scale and zero "
                    "point must be those of its input."
                )

    def _own_tensors(self, node: Node) -> dict[str, np.ndarray]:
        """Checks a node's tensors and returns them by the last part of their names."""
        if node.op == "table":
            table = self._take(node, "table", (np.uint8,), [(256,)])
            self._check_table(node, table)
            return {"table": table}
        dimensions = 4 if node.op == "conv2d" else 2
        weight = self._take(node, "weight", (np.float32 if node.float else np.int8,), None)
        if weight.ndim != dimensions or not weight.size:
            raise ArtifactError(f"Node {node.name!r} has a weight of an impossible shape.")
        own, channels = {"weight": weight}, (weight.shape[0],)
        if node.float:
            self._finite(node, weight)
        else:
            own["scale"] = scale = self._take(
                node, "weight_scale", (np.float32, np.float64), [(), channels]
            )
            if not bool(((scale >= _SMALLEST_FLOAT) & (scale <= LARGEST_SCALE)).all()):
                raise ArtifactError(
                    f"Node {node.name!r} has weight scales that are not above 0, or above "
                    f"{LARGEST_SCALE:.2g}."
                )
            if f"{node.name}.weight_zero_point" in self.tensors:
                own["zero_point"] = self._take(node, "weight_zero_point", (np.int8,), [scale.shape])
        if f"{node.name}.bias" in self.tensors:
            own["bias"] = self._take(node, "bias", (np.float32,), [channels])
            self._finite(node, own["bias"])
        return own

    def _take(
        self, node: Node, what: str, dtypes: tuple[Any, ...], shapes: list[tuple[int, ...]] | None
    ) -> np.ndarray:
        key = f"{node.name}.{what}"
        tensor = self.tensors.get(key)
        if tensor is None:
            raise ArtifactError(f"Node {node.name!r} lacks its tensor {key!r}.")
        if tensor.dtype not in dtypes or (shapes and tensor.shape not in shapes):
            raise ArtifactError(
                f"Node {node.name!r} has a {what} of dtype {tensor.dtype} and shape "
                f"{tensor.shape}, which does not fit."
            )
        self.used.add(key)
        return tensor

    def _finite(self, node: Node, tensor: np.ndarray) -> None:
        if not bool((np.abs(tensor) <= LARGEST_VALUE).all()):  # which NaN is not either
            raise ArtifactError(
                f"Node {node.name!r} has numbers that are not finite or above {LARGEST_VALUE:.2g}."
            )

    def _check_table(self, node: Node, table: np.ndarray) -> None:
        """Checks that a table is the function that it is named after, to a step."""
        source = self.seen[node.inputs[0]].grid
        assert source is not None
        assert node.grid is not None
        exact = make_table(node.attributes["function"], source, node.grid)
        if int(np.abs(exact.astype(np.int64) - table).max()) > 1:
            raise ArtifactError(
                f"Node {node.name!r} has a table that is not the function "
                f"{node.attributes['function']}."
            )

    def _sums(self, node: Node, own: Mapping[str, np.ndarray]) -> None:
        """Checks that no sum of a layer can leave 32 bits."""
        source = self.seen[node.inputs[0]].grid
        assert source is not None
        reach = max(source.zero_point - source.low, source.high - source.zero_point)
        rows = own["weight"].reshape(len(own["weight"]), -1)
        # Most layers are too small for it whatever their weights are: at most 255 from their zero
        # point.
        if rows.shape[1] * 255 * reach <= LARGEST_SUM:
            return
        zero = own.get("zero_point", np.int8(0)).astype(np.int64).reshape(-1, 1)
        sums = np.abs(rows - zero).sum(axis=1, dtype=np.int64)
        if int(sums.max()) * reach > LARGEST_SUM:
            raise ArtifactError(f"Node {node.name!r} has sums that 32 bits do not hold.")


def make_table(function: str, source: Grid, target: Grid) -> np.ndarray:
    """Returns what a `table` node holds: for each integer of the input, that of the output.

    Args:
        function: A name of `FUNCTIONS`.
        source: The input's grid.
        target: The output's.

    Returns:
        uint8 [256].
    """
    x = float(np.float32(source.scale)) * (np.arange(256, dtype=np.float64) - source.zero_point)
    steps = np.rint(FUNCTIONS[function](x) / float(np.float32(target.scale)))
    return np.clip(steps + target.zero_point, target.low, target.high).astype(np.uint8)
