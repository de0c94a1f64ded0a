"""What reading a quantized graph into an artifact is, whoever quantized it: FX or PT2E.

A graph leaves values in float that an artifact's layers round, and rounds some that they do not.
What agrees bit for bit is taken over; of the rest, `GraphReader.changed` says what is different.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from .._core.process import quiet
from .._core.versions import package_versions
from .._torch.defaults import plain_defaults
from ..artifact.format import Artifact, ModelInfo
from ..artifact.grid import HARDSIGMOID_GRID, Grid
from ..artifact.tensors import Tensors
from ..errors import ArtifactError, QzooError
from ..models.plan import plan
from ..native.layers import check_fit
from ..reference.calls import AVERAGES, MOVES
from ..reference.run import Watched
from ..reference.trace import record
from ..registry import get_entry

#: An `fx.Node`, whose arguments are typed as a union of everything.
Node = Any
#: Operations whose result is rounded to a grid that is not theirs to choose.
_FIXED = AVERAGES | {"hardsigmoid"}


class GraphReader(ABC):
    """Collects an artifact's layers and tensors from a graph.

    Attributes:
        module: The quantized graph.
        recording: The architecture's own forward pass.
        layers: Module name to layer; those in `unknown` still lack their ranges.
        tensors: The artifact's numbers, arrays or tensors.
        changed: Layer name to what is not exactly as in the graph.
        unknown: The node whose values decide a layer's range, and the layer's name.
        grids: Node to the grid of its value, where that is quantized.
    """

    #: What rounds a float value, as nodes name it.
    rounds: Any

    def __init__(self, module: fx.GraphModule, info: ModelInfo) -> None:
        self.module = module
        self._entry = get_entry(info.architecture)
        _, self.layers = plan(self._entry, info.builder_kwargs)
        self.recording = record(self._entry.skeleton(info.builder_kwargs), self.layers)
        self.tensors: dict[str, Any] = {}
        self.changed: dict[str, str] = {}
        self.unknown: dict[Node, str] = {}
        self.grids: dict[Node, Grid] = {}

    @abstractmethod
    def kind(self, node: Node) -> str:
        """Returns the plain name of what computes a tensor in the graph, or ""."""

    @abstractmethod
    def only_asks(self, node: Node) -> bool:
        """Whether a node asks for a value's shape, and reads nothing of it."""

    @abstractmethod
    def readers(self, rounding: Node) -> list[Node]:
        """Returns what reads a rounded value."""

    def take_grids(
        self, results: Mapping[str, Node], fixed: Mapping[str, Node], computed: Collection[Node]
    ) -> None:
        """Takes over the layers' grids, and notes what the graph rounds in another way.

        Args:
            results: Layer name to the node at which its value is complete.
            fixed: Name and node of averages and hard sigmoids.
            computed: All nodes at which a recorded call's value is known to be complete; to round
                that is nothing of the graph's own.
        """
        for name, node in results.items():
            self._take_grid(name, node)
        for name, node in fixed.items():
            sigmoid = self.kind(node) == "hardsigmoid"
            wanted = HARDSIGMOID_GRID if sigmoid else self._own_grid(node.args[0])
            if self._rounded(node) != ({wanted}, True):
                grid = "1/256" if sigmoid else "its input's steps"
                self.changed[name] = f"it is rounded to {grid}"
        self._note_extra_roundings(computed)

    def is_fixed(self, node: Node) -> bool:
        """Whether a node rounds to a grid that is not its own to choose."""
        return self.kind(node) in _FIXED

    def _take_grid(self, name: str, node: Node) -> None:
        grids, everywhere = self._rounded(node)
        direct = {self.grids[user] for user in node.users if user.target is self.rounds}
        grids = direct or grids
        if len(grids) != 1:
            self.unknown[node] = name
            self.changed[name] = "its output is float in the graph; the range is measured"
            return
        (grid,) = grids
        self.layers[name] = self.layers[name].on(grid)
        if not everywhere:
            self.changed[name] = "its output is read in float somewhere in the graph"

    def _rounded(self, node: Node) -> tuple[set[Grid], bool]:
        """Returns the grids a value is rounded to, and whether nobody reads it unrounded.

        To round after an operation that only moves values is the same as to round before it.
        """
        if node in self.grids:
            return {self.grids[node]}, True
        grids: set[Grid] = set()
        everywhere = True
        for user in node.users:
            if user.target is self.rounds:
                grids.add(self.grids[user])
            elif self.kind(user) in MOVES:
                further, rounded = self._rounded(user)
                grids |= further
                everywhere = everywhere and rounded
            elif not self.only_asks(user):
                everywhere = False
        return grids, everywhere

    def _own_grid(self, node: Node) -> Grid | None:
        """Returns the grid that a value lies on by what computes it, or None."""
        while node not in self.grids and self.kind(node) in MOVES:
            node = node.args[0]
        return self.grids.get(node)

    def _note_extra_roundings(self, computed: Collection[Node]) -> None:
        """Notes roundings of the graph that no layer of an artifact does."""
        for node in self.module.graph.nodes:
            if node.target is not self.rounds or node.args[0] in computed:
                continue
            source, grid = node.args[0], self.grids[node]
            if self._own_grid(source) in (grid, None) or all(
                self.kind(reader) == "cat" and self._rounded(reader)[0] == {grid}
                for reader in self.readers(node)
            ):
                continue  # it changes nothing, is a layer's own, or happens in the concatenation
            self.changed[source.name] = "it is rounded twice in the graph"

    def run(self, images: Tensor, watch: Callable[[fx.Node, Any], None]) -> None:
        """Runs the graph on images and shows every value to a function.

        Raises:
            ArtifactError: The graph does not take these images.
        """
        # It rescales them all the same, as an artifact's concatenations do.
        expected = quiet("All inputs of this cat operator must share")
        try:
            with torch.no_grad(), plain_defaults(), expected:
                Watched(self.module, watch).run(images)
        except QzooError:
            raise
        except (RuntimeError, ValueError, AssertionError) as error:
            raise ArtifactError(
                f"The quantized graph does not take images of the shape {tuple(images.shape)}: "
                f"{str(error).strip()[:300]}"
            ) from None

    def measure(self, batches: Iterable[Tensor], make_observer: Callable[[], Any]) -> None:
        """Gives the layers in `unknown` the ranges that images give.

        Args:
            batches: Images as the graph takes them.
            make_observer: Makes what takes note of values (`update`) and chooses scale and zero
                point, [1] each (`qparams`), such as `qzoo.quantize.observers.Observer`.

        Raises:
            ArtifactError: The graph does not take these images.
        """
        if not self.unknown:
            return
        observers = {node: make_observer() for node in self.unknown}

        def watch(node: fx.Node, value: Any) -> None:
            if node in observers:
                observers[node].update(value)

        for images in batches:
            self.run(images, watch)
        for node, observer in observers.items():
            scale, zero_point = observer.qparams()
            name = self.unknown[node]
            self.layers[name] = self.layers[name].on(Grid(float(scale[0]), int(zero_point[0])))

    def artifact(self, info: ModelInfo) -> Artifact:
        """Returns what was read; `info.recipe["changed"]` says what is not as in the graph.

        Raises:
            ArtifactError: It does not fit the architecture.
        """
        if self.changed:
            info = dataclasses.replace(info, recipe={**info.recipe, "changed": self.changed})
        # Recording has replaced the parts of the skeleton that it recorded.
        check_fit(self._entry.skeleton(info.builder_kwargs), self.layers, self.tensors)
        return Artifact(info, self.layers, Tensors(self.tensors), package_versions())
