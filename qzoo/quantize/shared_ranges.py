"""One range for a concatenation and all that is concatenated.

Where branches carry the range of the concatenation that they end in, joining them is copying: no
value is rounded a second time, and no runtime has to rescale. ShuffleNet's blocks pass half of
their channels on untouched, so that all blocks of a stage come to share one range.
"""

from __future__ import annotations

import torch
from torch import fx

from .state import Quantization


def share_ranges(state: Quantization) -> int:
    """Gives every concatenation and the layers that it joins one common range.

    Args:
        state: The model, calibrated; its `ranges` are changed.

    Returns:
        How many layers share a range with another one.
    """
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader.setdefault(name, name) != name:
            name = leader[name]
        return name

    joined = [n for n in state.recording.graph.nodes if _is_cat(state, n)]
    for node in joined:
        for part in node.args[1]:
            leader[find(grid_source(state, part))] = find(str(node.target))
    groups: dict[str, list[str]] = {}
    for name in list(leader):
        groups.setdefault(find(name), []).append(name)
    concatenations = {str(node.target) for node in joined}
    for members in groups.values():
        # What a branch would clip less of, the concatenation clips all the same.
        ends = [_ends(state, name) for name in members if name in concatenations]
        low, high = min(e[0] for e in ends), max(e[1] for e in ends)
        common = _qparams(state, low, high)
        for name in members:
            state.ranges[name] = common
    return sum(len(members) for members in groups.values())


def grid_source(state: Quantization, node: fx.Node) -> str:
    """Returns the layer whose output range a recorded value lies in."""
    while not (node.op == "call_module" and str(node.target) in state.ranges):
        source = node.args[0]
        assert isinstance(source, fx.Node), node
        node = source
    return str(node.target)


def _is_cat(state: Quantization, node: fx.Node) -> bool:
    functional = state.layers.get(str(node.target))
    return functional is not None and functional.op == "functional" and "cat" in node.args[:1]


def _ends(state: Quantization, name: str) -> tuple[float, float]:
    scale, zero_point = state.ranges[name]
    return -zero_point * scale, (state.grid.high - zero_point) * scale


def _qparams(state: Quantization, low: float, high: float) -> tuple[float, int]:
    scale, zero_point = state.grid.qparams(torch.tensor([low]), torch.tensor([high]))
    return float(scale[0]), int(zero_point[0])
