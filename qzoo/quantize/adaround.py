"""Adaptive rounding: each weight is rounded up or down as its layer's outputs need it.

Rounding to nearest makes every weight's own error small, but a layer's output sums many of them.
With the second moments of the layer's inputs the output error is a quadratic form of the weights'
errors, which AdaRound minimizes over the two integers next to each weight. Here coordinate descent
does so instead of gradients: column after column takes the better of its two integers, given all
others. It needs no learning rate, gives the same integers every time, and costs a few matrix
products a layer.

Sources: M. Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020,
https://arxiv.org/abs/2004.10568, equation 13; E. Frantar et al., "GPTQ", 2022,
https://arxiv.org/abs/2210.17323, section 3.3, for updating columns in blocks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .layerwise import Integers, Site, walk
from .state import WEIGHT_GRID, Quantization, spread

#: Rows of inputs (output pixels) that second moments are taken over, at most.
ROWS = 1 << 15
#: How strongly weights are held to their own values, as a share of the inputs' mean square: what
#: the images at hand do not decide should stay rounded to nearest.
DAMPING = 0.05
#: Passes over all columns; later ones hardly change an integer.
SWEEPS = 3
#: Columns between two updates of all the others.
BLOCK = 128


def round_adaptively(state: Quantization) -> None:
    """Chooses the int8 weights whose layer outputs are nearest to the float layer's.

    Layers are taken in the order of the forward pass, each with the inputs that the int8 layers
    before it give. A difference in the mean is left to the bias.

    Args:
        state: The model, calibrated and with weight scales; its `rounded` weights are set.
    """
    changed = total = 0

    def visit(site: Site) -> None:
        nonlocal changed, total
        nearest = state.integers(site.name)
        state.rounded[site.name] = rounded = _round(state, site)
        changed += int((rounded != nearest).sum())
        total += nearest.numel()

    state.notes["adaround_images"] = walk(state, visit, "round adaptively")
    state.notes["adaround_changed"] = round(changed / max(total, 1), 4)


def _round(state: Quantization, site: Site) -> Tensor:
    """Returns the int8 weight of a layer."""
    layer, weight = state.layers[site.name], state.weight(site.name)
    own, cross = _moments(state, site)
    groups, size = own.shape[:2]
    scale = spread(state.weight_scales[site.name], weight).expand_as(weight)
    # [groups, output channels of a group, K], in steps of each channel's scale.
    wanted = (weight / scale).double().reshape(groups, -1, size)
    damping = DAMPING * own.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None]
    identity = torch.eye(size, dtype=torch.float64)
    own = own + (damping + 1e-12) * identity
    # The weights that would be best if they need not be integers lie where the gradient is 0.
    target = wanted @ (cross + (damping + 1e-12) * identity)
    low = wanted.floor().clamp(WEIGHT_GRID.low, WEIGHT_GRID.high)
    high = wanted.ceil().clamp(WEIGHT_GRID.low, WEIGHT_GRID.high)
    chosen = descend(own, target, low, high, wanted.round().clamp(low, high))
    assert layer.op in ("conv2d", "linear")
    return chosen.reshape(weight.shape).to(torch.int8)


def descend(own: Tensor, target: Tensor, low: Tensor, high: Tensor, start: Tensor) -> Tensor:
    """Minimizes q H q' - 2 t q' over integers, one of two for each element.

    Args:
        own: H, float64 [G, K, K], symmetric with a positive diagonal.
        target: t, float64 [G, O, K].
        low: The smaller integer of each element, float64 [G, O, K].
        high: The larger one, float64 [G, O, K].
        start: Where to start, float64 [G, O, K], elements of `low` or `high`.

    Returns:
        The best integers found, float64 [G, O, K]; never worse than `start`.
    """
    chosen = start.clone()
    slope = chosen @ own - target
    curvature = own.diagonal(dim1=1, dim2=2)
    size = own.shape[1]
    for _ in range(SWEEPS):
        before = chosen.clone()
        for begin in range(0, size, BLOCK):
            end = min(begin + BLOCK, size)
            block, inner = slope[:, :, begin:end].clone(), own[:, begin:end, begin:end]
            moved = torch.zeros_like(block)
            for k in range(end - begin):
                column = begin + k
                old = chosen[:, :, column]
                free = old - block[:, :, k] / curvature[:, column, None]
                new = free.round().clamp(low[:, :, column], high[:, :, column])
                step = new - old
                moved[:, :, k] = step
                chosen[:, :, column] = new
                block += step[:, :, None] * inner[:, None, k, :]
            slope += moved @ own[:, begin:end, :]
        if bool((before == chosen).all()):
            break
    return chosen


def _moments(state: Quantization, site: Site) -> tuple[Tensor, Tensor]:
    """Returns the covariances of a layer's inputs, as its weights see them.

    Returns:
        Of the int8 inputs with themselves and of the float inputs with the int8 ones, float64
        [groups, K, K], K being the weights that one output sums.
    """
    layer, weight = state.layers[site.name], state.weight(site.name)
    groups = layer.groups if layer.op == "conv2d" else 1
    size = weight[0].numel()
    own = torch.zeros(groups, size, size, dtype=torch.float64)
    cross = torch.zeros_like(own)
    sum_float = torch.zeros(groups, size, dtype=torch.float64)
    sum_int8 = torch.zeros_like(sum_float)
    count, most = 0, max(1, ROWS // max(1, len(site.float_inputs)))
    for a, b in zip(site.float_inputs, site.int8_inputs, strict=True):
        # Both by the same rows; [groups, rows, K].
        x = _rows(state, site.name, a, groups)
        y = _rows(state, site.name, b.real() if isinstance(b, Integers) else b, groups)
        step = max(1, x.shape[1] // most)
        x, y = x[:, ::step], y[:, ::step]
        own += (y.transpose(1, 2) @ y).double()
        cross += (x.transpose(1, 2) @ y).double()
        sum_float += x.sum(dim=1, dtype=torch.float64)
        sum_int8 += y.sum(dim=1, dtype=torch.float64)
        count += x.shape[1]
    own /= count
    cross /= count
    own -= sum_int8[:, :, None] * sum_int8[:, None, :] / count**2
    cross -= sum_float[:, :, None] * sum_int8[:, None, :] / count**2
    return own, cross


def _rows(state: Quantization, name: str, x: Tensor, groups: int) -> Tensor:
    """Returns what each output of a layer sums: [groups, rows, K], in the weight's order."""
    layer, weight = state.layers[name], state.weight(name)
    if layer.op == "linear":
        return x.reshape(1, -1, x.shape[-1])
    height, width = weight.shape[2:]
    patches = F.unfold(x, (height, width), layer.dilation, layer.padding, layer.stride)
    n, _, pixels = patches.shape
    patches = patches.reshape(n, groups, weight[0].numel(), pixels)
    return patches.permute(1, 0, 3, 2).reshape(groups, n * pixels, weight[0].numel())
