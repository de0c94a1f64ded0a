"""Which layer feeds which: a model's forward pass, recorded as a graph of its leaf modules.

The recording runs the forward once on `torch.fx` proxies. Unlike `torch.fx.symbolic_trace` it
patches nothing in the process, so that other threads can build and run models meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torchvision.models.shufflenetv2 import channel_shuffle

from ..artifact.layers import Layer
from ..errors import ArtifactError
from .calls import kind

#: Name of the module that stands for the float arithmetic in front of the first quantization.
INPUT_AFFINE = "_transform_input"


class _Leaf(nn.Module):
    """Records its own call instead of computing."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: fx.Proxy, *args: Any) -> fx.Proxy:
        return x.tracer.create_proxy("call_module", self.name, (x, *args), {})


class _Functional(nn.Module):
    """Takes a FloatFunctional's place; its calls name the operation first."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def _record(self, op: str, first: fx.Proxy, *args: Any) -> fx.Proxy:
        return first.tracer.create_proxy("call_module", self.name, (op, *args), {})

    def add(self, x: fx.Proxy, y: fx.Proxy) -> fx.Proxy:
        return self._record("add", x, x, y)

    def add_relu(self, x: fx.Proxy, y: fx.Proxy) -> fx.Proxy:
        return self._record("add_relu", x, x, y)

    def mul(self, x: fx.Proxy, y: fx.Proxy) -> fx.Proxy:
        return self._record("mul", x, x, y)

    def cat(self, xs: list[fx.Proxy], dim: int = 0) -> fx.Proxy:
        return self._record("cat", xs[0], list(xs), dim)


class Recording:
    """A recorded forward pass.

    Attributes:
        graph: Placeholder, `call_module` nodes (a functional's first argument is the operation's
            name), `call_function`, `call_method`, output. Each node's `meta["step"]` names it:
            the module's path ("layer1.0.conv1") or, of functions and further calls of a module,
            the node's own name. `meta["kind"]` says what it computes, in the words of `calls`.
        modules: The skeleton's leaf modules by name; weights are on the meta device.
        affine: Gain and offset per input channel, float32 [3] each, of what the model does to its
            input before quantizing it; None where that is nothing.
    """

    def __init__(
        self,
        graph: fx.Graph,
        modules: dict[str, nn.Module],
        affine: tuple[Tensor, Tensor] | None,
    ) -> None:
        self.graph, self.modules, self.affine = graph, modules, affine


def record(skeleton: nn.Module, layers: Mapping[str, Layer]) -> Recording:
    """Records the forward pass of a quantizable model, whose leaves it replaces.

    Args:
        skeleton: The float model in eval mode, not fused; may live on the meta device.
        layers: Module name to layer, as an artifact carries them.

    Raises:
        ArtifactError: A layer that the model lacks, or a part of it without a layer.
    """
    modules = _leaves(skeleton, layers)
    for name in modules:
        parent, _, child = name.rpartition(".")
        functional = name in layers and layers[name].op == "functional"
        leaf = _Functional(name) if functional else _Leaf(name)
        skeleton.get_submodule(parent)._modules[child] = leaf
    affine = None
    if getattr(skeleton, "transform_input", False):
        affine = _input_affine(skeleton)
        skeleton.__dict__["_transform_input"] = _Leaf(INPUT_AFFINE)
    graph = fx.Graph()
    result = skeleton(fx.Proxy(graph.placeholder("x")))
    graph.output(result.node)
    _find_shuffles(graph)
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    seen = set()
    for node in graph.nodes:
        fresh = node.op == "call_module" and node.target not in seen
        node.meta["step"] = str(node.target) if fresh else node.name
        node.meta["kind"] = kind(node, modules.get(str(node.target)))
        seen.add(node.target)
    return Recording(graph, modules, affine)


def _leaves(skeleton: nn.Module, layers: Mapping[str, Layer]) -> dict[str, nn.Module]:
    leaves = {}
    for name in layers:
        try:
            leaves[name] = skeleton.get_submodule(name)
        except AttributeError:
            raise ArtifactError(
                f"The artifact has a layer {name!r} that this architecture lacks: it was made for "
                "another architecture or with other builder arguments."
            ) from None
    for name, module in skeleton.named_modules():
        if list(module.children()) or name in leaves or name.rpartition(".")[0] in leaves:
            continue
        if list(module.parameters()):
            raise ArtifactError(
                f"The artifact has no layer for {name!r} of this architecture: it is incomplete or "
                "was made for another architecture."
            )
        if not isinstance(module, (nn.Sequential, nn.ModuleList)):
            leaves[name] = module
    return leaves


def _input_affine(skeleton: Any) -> tuple[Tensor, Tensor]:
    """Measures the per-channel gain and offset of the model's `_transform_input`."""
    # In float64, so that rounding to float32 gives the model's own constants back.
    pixel = torch.zeros(1, 3, 1, 1, dtype=torch.float64, device="cpu")
    zero = skeleton._transform_input(pixel).flatten()
    one = skeleton._transform_input(pixel + 1).flatten()
    return (one - zero).float(), zero.float()


def _find_shuffles(graph: fx.Graph) -> None:
    """Replaces torchvision's view, transpose, contiguous, view by one `channel_shuffle` call."""
    for node in list(graph.nodes):
        if not (node.op == "call_method" and node.target == "view" and len(node.args) == 6):
            continue
        source, _, groups, *_ = node.args
        chain = [node]
        for target in (torch.transpose, "contiguous", "view"):
            users = list(chain[-1].users)
            if len(users) != 1 or users[0].target != target:
                break
            chain.append(users[0])
        if len(chain) == 4 and chain[1].args[1:] == (1, 2) and isinstance(groups, int):
            with graph.inserting_before(node):
                shuffled = graph.call_function(channel_shuffle, (source, groups))
            chain[-1].replace_all_uses_with(shuffled)
