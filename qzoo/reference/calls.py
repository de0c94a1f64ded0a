"""What the calls of recorded, traced and exported graphs compute, by one set of plain names.

"relu" is a module `nn.ReLU`, `F.relu`, `x.relu_()` and `aten.relu.default` alike.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import fx, nn

_MODULES: dict[type[nn.Module], str] = {
    nn.Conv2d: "conv2d",
    nn.Linear: "linear",
    nn.ReLU: "relu",
    nn.Hardswish: "hardswish",
    nn.Hardsigmoid: "hardsigmoid",
    nn.MaxPool2d: "max_pool2d",
    nn.AvgPool2d: "avg_pool2d",
    nn.AdaptiveAvgPool2d: "adaptive_avg_pool2d",
    nn.Dropout: "dropout",
    nn.Identity: "identity",
}

#: What computes no new values: its output lies on its input's grid.
MOVES = frozenset(
    {"channel_shuffle", "chunk", "contiguous", "dropout", "flatten", "getitem", "identity",
     "max_pool2d", "relu", "reshape", "slice", "transpose", "view"}
)  # fmt: skip
#: What averages, whose output int8 kernels round to their input's grid.
AVERAGES = frozenset({"adaptive_avg_pool2d", "avg_pool2d", "mean"})


def kind(node: fx.Node, module: nn.Module | None = None) -> str:
    """Returns the plain name of what a call computes, "" where it has none.

    Args:
        node: A call of a graph.
        module: The module that it calls, if any.
    """
    if node.op == "call_module":
        if node.args and isinstance(node.args[0], str):
            return node.args[0]  # a functional's operation, as recordings name it
        return next((name for cls, name in _MODULES.items() if isinstance(module, cls)), "")
    if node.op == "call_method":
        return str(node.target).rstrip("_")
    if node.op != "call_function":
        return ""
    return str(getattr(node.target, "__name__", "")).partition(".")[0].rstrip("_")


def grid_source(node: fx.Node, ranged: Collection[str]) -> str:
    """Returns what the grid that a recorded value lies on belongs to: a layer, or a hard sigmoid.

    Args:
        node: The call; its `meta["kind"]` says what it computes.
        ranged: Names of the layers with an output range.
    """
    while not (node.op == "call_module" and str(node.target) in ranged):
        if node.meta["kind"] == "hardsigmoid":
            return str(node.meta["step"])
        node = node.all_input_nodes[0]
    return str(node.target)
