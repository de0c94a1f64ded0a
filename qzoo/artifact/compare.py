"""Compares two realisations of one graph node by node, on integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._core.given import as_array
from .graph import Graph
from .interpret import interpret


@dataclass(frozen=True)
class LayerDifference:
    """How far two realisations of a node are apart, given the same input integers.

    Attributes:
        name: The node's name, for a layer of a builder its module's path ("layer1.0.conv1").
        op: The node's operation ("conv2d"), of a table its function ("hard_swish").
        max_steps: Largest difference of two output integers, in steps of the output scale.
        differing: Share of the output integers that differ, in [0, 1].
        outputs: Number of output integers compared.
    """

    name: str
    op: str
    max_steps: int
    differing: float
    outputs: int


def integers(graph: Graph, images: np.ndarray) -> dict[str, np.ndarray]:
    """Returns every node's integers, uint8 by name, as docs/artifact.md defines them.

    Args:
        graph: The graph.
        images: float32 [N, 3, H, W].

    Raises:
        ArgumentError: The graph takes no such images.
    """
    found: dict[str, np.ndarray] = {}

    def note(name: str, value: np.ndarray) -> None:
        if value.dtype == np.uint8:
            found[name] = value

    interpret(graph, images, note)
    return found


def differences(
    graph: Graph, expected: Mapping[str, Any], given: Mapping[str, Any]
) -> list[LayerDifference]:
    """Compares the integers that two realisations gave.

    Args:
        graph: What both of them realise.
        expected: A node's name to its integers, an array or a tensor, uint8.
        given: The same of the other realisation, which may hold fewer nodes.

    Returns:
        One entry for each node in `given`, in its order.
    """
    nodes = {node.name: node for node in graph.nodes}
    found = []
    for name, values in given.items():
        gap = np.abs(as_array(values).astype(np.int16) - as_array(expected[name]))
        op = str(nodes[name].attributes.get("function", nodes[name].op))
        found.append(LayerDifference(name, op, int(gap.max()), float((gap > 0).mean()), gap.size))
    return found
