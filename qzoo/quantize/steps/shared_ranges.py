"""One range for a concatenation and all that is concatenated.

Where branches carry the range of the concatenation that they end in, joining them is copying: no
value is rounded a second time, and no runtime has to rescale. ShuffleNet's blocks pass half of
their channels on untouched, so that all blocks of a stage come to share one range.
"""

from __future__ import annotations

from collections.abc import Collection

from ...reference.calls import grid_source
from ...reference.trace import Recording
from ..state import Quantization


def share_ranges(state: Quantization) -> None:
    """Gives every concatenation and the layers that it joins one common range.

    Args:
        state: The model, calibrated; its `ranges` are changed.
    """
    groups = joined_layers(state.recording, state.ranges)
    for members, concatenations in groups:
        # A wider range would not help a branch: the concatenation clips it to its own.
        ends = [_ends(state, name) for name in concatenations]
        low, high = min(e[0] for e in ends), max(e[1] for e in ends)
        common = _qparams(state, low, high)
        for name in members:
            state.ranges[name] = common
    state.notes["layers_with_shared_range"] = sum(len(members) for members, _ in groups)


def joined_layers(
    recording: Recording, ranged: Collection[str]
) -> list[tuple[list[str], list[str]]]:
    """Finds the layers that concatenations join, directly or through each other.

    Args:
        recording: Which layer feeds which.
        ranged: Names of the layers with an output range.

    Returns:
        For each group all members' names, and the names of the concatenations among them.
    """
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader.setdefault(name, name) != name:
            name = leader[name]
        return name

    calls = [n for n in recording.graph.nodes if n.op == "call_module"]
    joined = [n for n in calls if n.meta["kind"] == "cat"]
    for node in joined:
        for part in node.args[1]:
            leader[find(grid_source(part, ranged))] = find(str(node.target))
    groups: dict[str, list[str]] = {}
    for name in list(leader):
        groups.setdefault(find(name), []).append(name)
    concatenations = {str(node.target) for node in joined}
    return [(members, [n for n in members if n in concatenations]) for members in groups.values()]


def _ends(state: Quantization, name: str) -> tuple[float, float]:
    scale, zero_point = state.ranges[name]
    return -zero_point * scale, (state.grid.high - zero_point) * scale


def _qparams(state: Quantization, low: float, high: float) -> tuple[float, int]:
    grid = state.grid.grid(low, high)
    return grid.scale, grid.zero_point
