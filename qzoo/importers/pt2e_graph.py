"""Reads the graph of a model that PyTorch's PT2E flow quantized, call by recorded call."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..artifact.grid import Grid
from ..errors import ArtifactError
from ..reference import calls
from ..reference.ops import DEQUANTIZE, DEQUANTIZE_CHANNELS, QUANTIZE
from ..reference.trace import INPUT_AFFINE, Recording
from .graph_reader import Node

#: What recorded calls are in an exported graph, where that is not one operator of their own name.
_EXPORTED = {
    "channel_shuffle": ("view", "transpose", "contiguous", "view"),
    "add_relu": ("add", "relu"),
    # Neither computes anything in eval mode.
    **dict.fromkeys(("", "contiguous", "dropout", "identity"), ()),
}
#: The integers of a reduced range, 7 bits of 8.
REDUCED = (0, 127)
# Float arithmetic in front of the first quantization.
_AFFINE_OPS = frozenset({"slice", "select", "unsqueeze", "mul", "add", "cat"})


def kind(node: Node) -> str:
    """Returns the plain name of what computes tensors ("relu" for `aten.relu_.default`), or ""."""
    computes = node.target is operator.getitem or str(node.target).startswith("aten.")
    name = calls.kind(node) if computes else ""
    return "" if name.startswith("sym_") else name


def match_calls(graph: Any, recording: Recording) -> dict[Node, Node]:
    """Finds what every recorded call has become in a converted graph.

    Both come from the same forward pass, so that their operators follow in the same order.

    Args:
        graph: The graph that `convert_pt2e` returned.
        recording: The architecture's forward pass.

    Returns:
        Recorded node to the last node of the graph that computes it.

    Raises:
        ArtifactError: The graph is not one of this architecture, or a part of it that an int8
            model does without is still there.
    """
    for node in graph.nodes:
        if str(node.target).startswith("torchao."):
            raise ArtifactError(
                f"The graph rounds by torchao's own operators ({node.name}): quantize with the "
                "observers of the quantizers' default configurations."
            )
    rest = [n for n in graph.nodes if kind(n)]
    rest.reverse()  # the next one is at the end
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    found: dict[Node, Node] = {}
    for call in recording.graph.nodes:
        if call.op == "placeholder":
            found[call] = inputs[0]
        elif call.op == "output":
            break
        elif call.target == INPUT_AFFINE:
            while rest and kind(rest[-1]) in _AFFINE_OPS:
                found[call] = rest.pop()
        else:
            source = next(a for a in call.all_input_nodes)
            found[call] = found[source]
            for expected in _EXPORTED.get(call.meta["kind"], (call.meta["kind"],)):
                while rest and kind(rest[-1]) == "dropout":
                    rest.pop()
                if not rest or kind(rest[-1]) != expected:
                    has = f"{kind(rest[-1])!r} ({rest[-1].name})" if rest else "nothing"
                    raise ArtifactError(
                        f"The graph has {has} where {call.target} of the architecture computes "
                        f"{expected!r}: export a float model of qzoo's builders in eval mode, and "
                        "quantize that."
                    )
                found[call] = rest.pop()
    if left := [n.name for n in rest if kind(n) != "dropout"]:
        raise ArtifactError(f"The graph goes on with {left[0]!r} where the architecture ends.")
    return found


def grid_of(rounding: Node) -> Grid:
    """Returns the uint8 grid of a per-tensor quantize or dequantize node.

    Raises:
        ArtifactError: Integers of another width.
    """
    scale, zero_point, low, high, _ = rounding.args[1:6]
    if (low, high) not in ((0, 255), (-128, 127), REDUCED):
        raise ArtifactError(
            f"{rounding.name} uses the integers {low} to {high}; an int8 artifact has 0 to 255."
        )
    return Grid(scale, int(zero_point) - int(low)).single()


def is_reduced(graph: Any) -> bool:
    """Whether a graph rounds to 7 bits instead of 8 somewhere."""
    return any(n.target is QUANTIZE and n.args[3:5] == REDUCED for n in graph.nodes)


def weight_of(module: nn.Module, node: Node, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Returns int8 values, scales and zero points of a convolution or linear node.

    Raises:
        ArtifactError: The layer was left in float, or has weights of another form.
    """
    dequantize = node.args[1]
    if dequantize.target not in (DEQUANTIZE, DEQUANTIZE_CHANNELS):
        raise ArtifactError(
            f"Layer {name!r} was left in float by the quantizer, which an int8 model cannot "
            "represent: quantize it too (set_global)."
        )
    values = constant(module, dequantize.args[0])
    if values.dtype != torch.int8:
        raise ArtifactError(f"Layer {name!r} has weights of the type {values.dtype}, not int8.")
    if dequantize.target is DEQUANTIZE:
        scale, zero_point = (
            torch.tensor(dequantize.args[1], dtype=torch.float32, device="cpu"),
            torch.tensor(dequantize.args[2], dtype=torch.int64, device="cpu"),
        )
        return values, scale, zero_point
    scale, zero_point = (constant(module, a) for a in dequantize.args[1:3])
    if dequantize.args[3] != 0:
        raise ArtifactError(f"Layer {name!r} has scales along another axis than its channels.")
    return values, scale, zero_point


def constant(module: nn.Module, node: Node) -> Tensor:
    """Computes a node that depends on nothing but the module's own tensors."""
    if node.op == "get_attr":
        owner, _, attribute = node.target.rpartition(".")
        return getattr(module.get_submodule(owner), attribute).detach()
    if node.op != "call_function":
        raise ArtifactError(f"{node.name} is not a constant of the graph.")

    def value(argument: Any) -> Any:
        return constant(module, argument) if isinstance(argument, torch.fx.Node) else argument

    with torch.no_grad():
        result: Tensor = node.target(*map(value, node.args), **node.kwargs)
    return result


def dotted_names(node: Node) -> Iterator[str]:
    """Yields the modules that a node was traced in, from the outermost."""
    for path, _ in (node.meta.get("nn_module_stack") or {}).values():
        yield path
