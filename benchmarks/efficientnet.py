"""EfficientNet-Lite0, which no builder of qzoo makes: a float model, and an int8 artifact of it.

EfficientNet-B0 (https://arxiv.org/abs/1905.11946) without squeeze-and-excitation, with ReLU6 for
SiLU, as TensorFlow pads: at stride 2 a pixel more at the bottom and on the right.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from qzoo.artifact.format import Artifact, ModelInfo
from qzoo.artifact.graph import INPUT, Node
from qzoo.artifact.grid import Grid

NAME = "efficientnet_lite0"
#: Expansion, kernel, stride, channels and number of the blocks of each stage.
STAGES = (
    (1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4), (6, 3, 1, 320, 1),
)  # fmt: skip


class Unit(nn.Sequential):
    """Convolution, batch norm and, mostly, ReLU6; images have even sides where the stride is 2."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1,
        relu: bool = True,
    ) -> None:  # fmt: skip
        before = (kernel - stride) // 2
        after = kernel - stride - before
        self.padding, self.relu = (before, after), relu
        same = before == after
        conv = nn.Conv2d(
            inputs, outputs, kernel, stride, before if same else 0, groups=groups, bias=False
        )
        layers: list[nn.Module] = [] if same else [nn.ZeroPad2d((before, after) * 2)]
        layers += [conv, nn.BatchNorm2d(outputs, eps=1e-3)]
        super().__init__(*layers, *([nn.ReLU6()] if relu else []))

    def folded(self) -> tuple[nn.Conv2d, Tensor, Tensor]:
        """Returns the convolution, and its weight and bias with the batch norm folded in."""
        conv, norm = (
            next(m for m in self if isinstance(m, k)) for k in (nn.Conv2d, nn.BatchNorm2d)
        )
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None and norm.running_var is not None
        gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        return conv, conv.weight * gain[:, None, None, None], norm.bias - norm.running_mean * gain


class Block(nn.Module):
    """An inverted residual; returns its input plus what the layers make of it, where both fit."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = inputs * expansion
        units = [Unit(inputs, wide, 1)] if expansion > 1 else []
        units += [Unit(wide, wide, kernel, stride, wide), Unit(wide, outputs, 1, relu=False)]
        self.layers = nn.Sequential(*units)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Returns [N, outputs, H / stride, W / stride] of [N, inputs, H, W]."""
        return x + self.layers(x) if self.adds else self.layers(x)


class EfficientNetLite0(nn.Module):
    """The float model: logits [N, 1000] of images [N, 3, 224, 224]."""

    def __init__(self) -> None:
        super().__init__()
        blocks: list[Block] = []
        inputs = 32
        for expansion, kernel, stride, outputs, count in STAGES:
            for number in range(count):
                step = 1 if number else stride
                blocks.append(Block(inputs, outputs, expansion, kernel, step))
                inputs = outputs
        self.stem, self.blocks = Unit(3, 32, 3, 2), nn.Sequential(*blocks)
        self.head, self.fc = Unit(inputs, 1280, 1), nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits."""
        return self.fc(self.head(self.blocks(self.stem(x))).mean((2, 3)))


def quantized(model: EfficientNetLite0, images: Iterable[Tensor]) -> Artifact:
    """Quantizes the float model: smallest to largest value, weights by channel, 8 bits.

    Args:
        model: In eval mode.
        images: To take the ranges of, float32 batches [N, 3, H, W].
    """
    writer = _Writer(_grids(model, images))
    node = writer.node("quantize", "quantize", [INPUT], "")
    node = writer.unit("stem", model.stem, node)
    for number, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        last, name = node, f"blocks.{number}"
        for place, unit in enumerate(block.layers):
            assert isinstance(unit, Unit)
            node = writer.unit(f"{name}.layers.{place}", unit, node)
        if block.adds:
            node = writer.node(name, "add", [last, node], name, relu=False)
    node = writer.unit("head", model.head, node)
    node = writer.node("mean", "mean", [node], "head", keep_dimensions=False)
    writer.weights("fc", model.fc.weight, model.fc.bias)
    node = writer.node("fc", "linear", [node], "fc", relu=False)
    nodes = [*writer.nodes, Node("dequantize", "dequantize", (node,))]
    return Artifact.from_graph(nodes, writer.tensors, ModelInfo(None, backend="onednn"))


def _grids(model: nn.Module, images: Iterable[Tensor]) -> dict[str, Grid]:
    """Returns the grid of every module's output, and of the images under the name ""."""
    ends: dict[str, tuple[float, float]] = {}

    def see(name: str, value: Tensor) -> None:
        low, high = ends.get(name, (0.0, 0.0))
        ends[name] = min(low, float(value.min())), max(high, float(value.max()))

    hooks = [
        module.register_forward_hook(lambda _, __, value, name=name: see(name, value))
        for name, module in model.named_modules()
        if name
    ]
    with torch.no_grad():
        for batch in images:
            see("", batch)
            model(batch)
    for hook in hooks:
        hook.remove()
    grids = {}
    for name, (low, high) in ends.items():
        scale = (high - low) / 255
        grids[name] = Grid(scale, round(-low / scale))
    return grids


class _Writer:
    """Collects nodes and tensors; the output of a module lies on the grid of its name."""

    def __init__(self, grids: dict[str, Grid]) -> None:
        self.grids, self.nodes = grids, list[Node]()
        self.tensors: dict[str, np.ndarray] = {}

    def node(self, name: str, op: str, inputs: list[str], grid: str, **attributes: object) -> str:
        self.nodes.append(Node(name, op, tuple(inputs), self.grids[grid], attributes))
        return name

    def unit(self, name: str, unit: Unit, source: str) -> str:
        conv, weight, bias = unit.folded()
        self.weights(name, weight, bias)
        before, after = unit.padding
        return self.node(
            name, "conv2d", [source], name, relu=unit.relu, stride=list(conv.stride),
            padding=[before, before, after, after], dilation=[1, 1], groups=conv.groups,
        )  # fmt: skip

    def weights(self, name: str, weight: Tensor, bias: Tensor) -> None:
        scale = weight.detach().abs().flatten(1).amax(1).clamp_min(1e-12) / 127
        whole = torch.round(weight.detach() / scale.reshape(-1, *[1] * (weight.ndim - 1)))
        self.tensors[f"{name}.weight"] = whole.to(torch.int8).numpy()
        self.tensors[f"{name}.weight_scale"] = scale.numpy()
        self.tensors[f"{name}.bias"] = bias.detach().numpy()
