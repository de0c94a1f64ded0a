"""The graphs of the zoo's architectures without numbers, and how an artifact's layers fill them.

Files of versions 1 and 2, and state dicts, hold layers and no graph. The blueprints of the builders
with their usual keywords are stored with the package, in `blueprints.json.xz`;
`python -m qzoo.models.blueprints` writes the file.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import json
import lzma
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._core.optional import require_torch
from ..errors import ArtifactError
from .graph import Node, make_table
from .grid import HARDSIGMOID_GRID, Grid
from .layers import BARE_OPS, RANGED_OPS, WEIGHTED_OPS, Layer

#: Keywords of builders that change no graph: numbers of classes, and what only training sees.
_OTHERS = frozenset({"num_classes", "dropout", "aux_logits", "init_weights"})
FILE = "blueprints.json.xz"
#: What older files call the layer that does an operation, where it has another name there.
_LAYER_OPS = {
    "add": "functional", "mul": "functional", "concat": "functional", "relu": "identity",
    "table": "hardswish",
}  # fmt: skip
#: What is known of a call besides a node's attributes.
_NO_ATTRIBUTES = frozenset({"name", "op", "inputs", "weight", "eps"})
#: Tensors of a layer with weights.
_PARTS = ("weight", "weight_scale", "weight_zero_point", "bias")


@dataclass(frozen=True)
class Blueprint:
    """An architecture's forward pass without numbers.

    Attributes:
        calls: What runs, in order: `name`, `op`, `inputs` and attributes of a node each. Of layers
            with weights also the `weight`'s shape, the `eps` of the batch norm that is folded into
            it, and whether `fuse_model` fuses a `relu` into it. The operation "relu" stands for
            one that may be fused into the layer before it.
        others: Layers that do not run (auxiliary classifiers, additions of blocks without a
            shortcut) or do nothing (dropout, batch norm that is folded in): name to operation.
    """

    calls: list[dict[str, Any]]
    others: dict[str, str]

    @property
    def head(self) -> str | None:
        """Name of the linear layer that gives the logits."""
        return next((c["name"] for c in reversed(self.calls) if c["op"] == "linear"), None)

    @property
    def aux(self) -> tuple[str, ...]:
        """Names of the auxiliary classifiers, which only training runs."""
        idle = (name for name, op in self.others.items() if op in WEIGHTED_OPS)
        return tuple(dict.fromkeys(name.partition(".")[0] for name in idle))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights that run, by layer name."""
        return {c["name"]: tuple(c["weight"]) for c in self.calls if "weight" in c}

    @property
    def eps(self) -> dict[str, float]:
        """What each folded batch norm adds to its variance, by the name of the layer before it."""
        return {c["name"]: c["eps"] for c in self.calls if "eps" in c}

    def layers(self) -> dict[str, Layer]:
        """Returns the layers that a converted model has, without ranges.

        Those that run come first, then those that lie idle; auxiliary classifiers are left out.
        """
        found: dict[str, Layer] = {}
        for call in self.calls:
            layer = _layer(call["op"], call)
            if call["op"] == "relu" and getattr(found.get(call["inputs"][0]), "relu", False):
                layer = Layer("identity")
            if layer is not None:
                found[call["name"]] = layer
        aux = tuple(f"{name}." for name in self.aux)
        idle = {n: Layer(op) for n, op in self.others.items() if not n.startswith(aux)}
        return found | idle


def blueprint_key(architecture: str, builder_kwargs: Mapping[str, Any]) -> str:
    """Returns the name of a blueprint: the architecture and the keywords that change its graph."""
    kept = {k: v for k, v in builder_kwargs.items() if k not in _OTHERS and v is not False}
    return json.dumps([architecture, kept], sort_keys=True)


def stored_blueprint(architecture: str, builder_kwargs: Mapping[str, Any]) -> Blueprint | None:
    """Returns the stored blueprint of a builder with these keywords; None where there is none."""
    found = _stored().get(blueprint_key(architecture, builder_kwargs))
    return None if found is None else Blueprint(**found)


def require_recording(architecture: str, builder_kwargs: Mapping[str, Any]) -> None:
    """Checks that a graph can be recorded that is not stored, which takes PyTorch.

    Raises:
        MissingDependencyError: PyTorch is not installed.
    """
    shown = ", ".join(f"{str(k)[:40]}={str(v)[:40]}" for k, v in builder_kwargs.items())
    require_torch(f"Building {architecture} with {shown[:200] or 'its usual keywords'}")


@functools.cache
def _stored() -> dict[str, dict[str, Any]]:
    packed = importlib.resources.files(__package__).joinpath(FILE).read_bytes()
    return json.loads(lzma.decompress(packed))


def fill(
    blueprint: Blueprint,
    layers: Mapping[str, Layer],
    arrays: Mapping[str, np.ndarray],
    classes: int,
) -> tuple[list[Node], dict[str, np.ndarray]]:
    """Makes the graph of a blueprint and the numbers of its layers.

    Args:
        blueprint: The architecture's.
        layers: Module name to layer.
        arrays: The layers' tensors by name.
        classes: Number of logits.

    Returns:
        The nodes, and the tensors that belong to them: those of layers that run, and tables of
        the activation functions.

    Raises:
        ArtifactError: A layer is missing or has a weight of another shape, or the architecture has
            none of that name.
    """
    names = {*blueprint.others, *(call["name"] for call in blueprint.calls)}
    if odd := [name for name in layers if name not in names]:
        raise ArtifactError(
            f"The artifact has a layer {odd[0]!r} that this architecture lacks: it was made for "
            "another architecture or with other builder arguments."
        )
    head = blueprint.head
    nodes: dict[str, Node] = {}
    tensors: dict[str, np.ndarray] = {}
    fused: dict[str, str] = {}  # a fused ReLU, and the node that computes it
    for call in blueprint.calls:
        name = call["name"]
        inputs = tuple(fused.get(source, source) for source in call["inputs"])
        layer = layers.get(name)
        if layer is not None:
            _check_fits(call, layer)
        if call["op"] == "relu" and layer is not None:
            fused[name] = inputs[0]
            continue
        source = nodes[inputs[0]].grid if inputs[0] in nodes else None
        node = nodes[name] = _node(call, inputs, layer, source)
        if node.weighted:
            shape = call["weight"]
            _check_shape(name, arrays, [classes, *shape[1:]] if name == head else shape)
        tensors |= _tensors(node, source, arrays)
    return list(nodes.values()), tensors


def _node(
    call: Mapping[str, Any], inputs: tuple[str, ...], layer: Layer | None, source: Grid | None
) -> Node:
    """Returns the node of a call, with its layer's numbers or its input's grid."""
    name, op = call["name"], call["op"]
    attributes = {k: v for k, v in call.items() if k not in _NO_ATTRIBUTES}
    grid = _grid(name, op, attributes.get("function"), layer, source)
    if op in WEIGHTED_OPS:
        assert layer is not None
        attributes["relu"] = layer.relu
    if grid is not None and (op == "relu" or attributes.get("relu")):
        grid = Grid(grid.scale, grid.zero_point, max(grid.low, grid.zero_point), grid.high)
    kept = layer is not None and layer.float
    return Node(name, "clip" if op == "relu" else op, inputs, grid, attributes, kept)


def _tensors(
    node: Node, source: Grid | None, arrays: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Returns the tensors of a node; a table is computed."""
    if node.op == "table":
        assert source is not None
        assert node.grid is not None
        return {f"{node.name}.table": make_table(node.attributes["function"], source, node.grid)}
    if not node.weighted:
        return {}
    parts = (f"{node.name}.{what}" for what in _PARTS)
    return {part: arrays[part] for part in parts if part in arrays}


def _check_fits(call: Mapping[str, Any], layer: Layer) -> None:
    """Checks that a layer does what the architecture does in its place."""
    name, wanted = call["name"], _LAYER_OPS.get(call["op"], call["op"])
    if layer.op != wanted:
        raise ArtifactError(
            f"The artifact's layer {name!r} is a {layer.op}, but this architecture has a {wanted} "
            "there: it was made for another architecture."
        )
    if layer.op != "conv2d":
        return
    found = {
        "stride": list(layer.stride),
        "padding": [*layer.padding, *layer.padding],
        "dilation": list(layer.dilation),
        "groups": layer.groups,
    }
    for key, value in found.items():
        if value != call[key]:
            raise ArtifactError(
                f"Layer {name!r} has the {key} {value} in the artifact and {call[key]} in this "
                "architecture: it was made for another one."
            )


def _check_shape(name: str, arrays: Mapping[str, np.ndarray], shape: list[int]) -> None:
    found = list(arrays[f"{name}.weight"].shape)
    if found != shape:
        raise ArtifactError(
            f"Layer {name!r} has a weight of shape {found} in the artifact, and {shape} in this "
            "architecture: it was made for another one, or with other builder arguments."
        )


#: Calls whose output has a range of its own.
_RANGED = frozenset({"quantize", "conv2d", "linear", "add", "mul", "concat"})


def _grid(
    name: str, op: str, function: str | None, layer: Layer | None, source: Grid | None
) -> Grid | None:
    """Returns the grid of a call's output."""
    if op in ("affine", "dequantize"):
        return None
    if function == "hard_sigmoid":
        return HARDSIGMOID_GRID
    if op in _RANGED or op == "table":
        if layer is None or layer.op in BARE_OPS:
            raise ArtifactError(
                f"The artifact has no layer for {name!r} of this architecture: it is incomplete or "
                "was made for another architecture."
            )
        return layer.grid
    return source


def layers_of(nodes: list[Node] | tuple[Node, ...]) -> dict[str, Layer]:
    """Returns the layers that files of versions 1 and 2 have for a graph's nodes."""
    layers = {}
    for node in nodes:
        layer = _layer(node.op, node.attributes)
        if layer is None:
            continue
        if node.grid is not None:
            layer = dataclasses.replace(layer.on(node.grid), float=node.float)
        layers[node.name] = layer
    return layers


def _layer(op: str, attributes: Mapping[str, Any]) -> Layer | None:
    """Returns the layer of an operation, without ranges; None where older files have none."""
    op = _LAYER_OPS.get(op, op)
    if op == "dequantize":
        return Layer(op)
    if op not in RANGED_OPS or attributes.get("function", "hard_swish") != "hard_swish":
        return None
    if op not in WEIGHTED_OPS:
        return Layer(op)
    if op == "linear":
        return Layer(op, relu=attributes["relu"])
    top, left, bottom, right = attributes["padding"]
    even = (top, left) == (bottom, right)
    return Layer(
        op,
        relu=attributes["relu"],
        stride=tuple(attributes["stride"]),
        padding=(top, left) if even else (top, left, bottom, right),
        dilation=tuple(attributes["dilation"]),
        groups=attributes["groups"],
    )
