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

from ..state import WEIGHT_GRID, Quantization, spread
from .layerwise import Integers, Site, walk

#: Rows of inputs (output pixels) that second moments are taken over, at most.
ROWS = 1 << 15
#: How strongly weights are held to their own values, as a share of the inputs' mean square: what
#: the images at hand do not decide should stay rounded to nearest.
DAMPING = 0.05
#: Passes over all columns; later ones hardly change an integer.
SWEEPS = 3
#: Columns that are chosen between two products with all the others.
BLOCK = 128
#: Inputs (rows times K) that are multiplied at a time, at least; 64 MiB.
CHUNK = 1 << 24
#: Rows of second moments that are computed at a time.
STRIPE = 1024


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
    weight = state.weight(site.name)
    scale = spread(state.weight_scales[site.name], weight).expand_as(weight)
    # [groups, output channels of a group, K], in steps of each channel's scale.
    wanted = (weight / scale).reshape(_groups(state, site.name), -1, weight[0].numel())
    own, target = _moments(state, site, wanted)
    diagonal = own.diagonal(dim1=1, dim2=2)
    damping = DAMPING * diagonal.mean(dim=1)[:, None] + 1e-12
    diagonal.add_(damping)
    # The weights that would be best if they need not be integers lie where the gradient is 0.
    target.add_(damping[:, :, None] * wanted)
    low = wanted.floor().clamp(WEIGHT_GRID.low, WEIGHT_GRID.high)
    high = wanted.ceil().clamp(WEIGHT_GRID.low, WEIGHT_GRID.high)
    chosen = descend(own, target, low, high, wanted.round().clamp(low, high))
    return chosen.reshape(weight.shape).to(torch.int8)


def descend(own: Tensor, target: Tensor, low: Tensor, high: Tensor, start: Tensor) -> Tensor:
    """Minimizes q H q' - 2 t q' over integers, one of two for each element.

    Args:
        own: H, float [G, K, K], symmetric with a positive diagonal.
        target: t, float [G, O, K].
        low: The smaller integer of each element, float [G, O, K].
        high: The larger one, float [G, O, K].
        start: Where to start, float [G, O, K], elements of `low` or `high`.

    Returns:
        The best integers found, float [G, O, K]; never worse than `start`.
    """
    # [G, K, O], where all that belongs to a column of weights lies side by side.
    chosen, wanted, low, high = (x.mT.contiguous() for x in (start, target, low, high))
    curvature = own.diagonal(dim1=1, dim2=2)
    size = own.shape[1]
    for _ in range(SWEEPS):
        changed = False
        for begin in range(0, size, BLOCK):
            end = min(begin + BLOCK, size)
            slope = own[:, begin:end] @ chosen - wanted[:, begin:end]
            inner = own[:, begin:end, begin:end]
            before = chosen[:, begin:end].clone()
            for k in range(end - begin):
                column = begin + k
                free = before[:, k] - slope[:, k] / curvature[:, column, None]
                new = free.round_().clamp_(low[:, column], high[:, column])
                # What is above the diagonal: the block's columns that are still to come.
                step = (new - before[:, k])[:, None]
                slope[:, k + 1 :].addcmul_(inner[:, k + 1 :, k, None], step)
                chosen[:, column] = new
            changed = changed or not torch.equal(before, chosen[:, begin:end])
        if not changed:
            break
    return chosen.mT


def _moments(state: Quantization, site: Site, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Returns what the error of a layer's outputs depends on.

    With y the int8 inputs that one output sums, x the float ones, C their covariances, and w rows
    of weights, these are C(y, y) and w C(x, y).

    Args:
        state: The model.
        site: The layer, with its inputs.
        wanted: The float weights, float32 [groups, O, K].

    Returns:
        Float32 [groups, K, K] and [groups, O, K].
    """
    groups, moments = len(wanted), None
    most = max(1, ROWS // max(1, len(site.float_inputs)))
    xs: list[Tensor] = []
    ys: list[Tensor] = []
    held = 0
    for number, (a, b) in enumerate(zip(site.float_inputs, site.int8_inputs, strict=True), 1):
        # Both by the same rows; [groups, rows, K].
        x = _rows(state, site.name, a, groups)
        y = _rows(state, site.name, b.real() if isinstance(b, Integers) else b, groups)
        step = max(1, x.shape[1] // most)
        xs.append(x[:, ::step])
        ys.append(y[:, ::step])
        held += xs[-1].numel()
        # Few large products take a fraction of the time of many small ones.
        if held >= CHUNK or number == len(site.float_inputs):
            x, y = torch.cat(xs, dim=1), torch.cat(ys, dim=1)
            xs, ys, held = [], [], 0
            if moments is None:
                moments = _Moments(wanted, x, y)
            moments.add(x, y)
    assert moments is not None
    return moments.result()


class _Moments:
    """Sums up products of inputs, chunk by chunk.

    Values are taken from about their mean, for which the first chunk's serves, so that float32
    is precise enough; what is left of the mean is taken off in the end.

    Args:
        wanted: The float weights, [groups, O, K].
        x: The float inputs of the first chunk, [groups, rows, K].
        y: Its int8 inputs.
    """

    def __init__(self, wanted: Tensor, x: Tensor, y: Tensor) -> None:
        self.wanted, self.count = wanted, 0
        groups, outputs, size = wanted.shape
        self.centers = x.mean(dim=1, keepdim=True), y.mean(dim=1, keepdim=True)
        self.sums = [
            torch.zeros(groups, 1, size, dtype=torch.float64, device="cpu") for _ in range(2)
        ]
        self.own = torch.zeros(groups, size, size, dtype=torch.float32, device="cpu")
        #: Whether w C(x, y) is summed up, by the float outputs w x, or C(x, y), which is cheaper
        #: where a layer has more outputs than inputs.
        self.by_outputs = 2 * outputs < size
        self.cross = torch.zeros(
            groups, outputs if self.by_outputs else size, size, dtype=torch.float32, device="cpu"
        )

    def add(self, x: Tensor, y: Tensor) -> None:
        """Adds a chunk, whose tensors it changes."""
        x.sub_(self.centers[0])
        y.sub_(self.centers[1])
        self.count += x.shape[1]
        for total, values in zip(self.sums, (x, y), strict=True):
            total += values.sum(dim=1, keepdim=True, dtype=torch.float64)
        # Of the symmetric matrix the blocks on and above the diagonal.
        for begin in range(0, y.shape[2], STRIPE):
            rows = y[:, :, begin : begin + STRIPE].mT
            self.own[:, begin : begin + STRIPE, begin:].baddbmm_(rows, y[:, :, begin:])
        self.cross.baddbmm_(self.wanted @ x.mT if self.by_outputs else x.mT, y)

    def result(self) -> tuple[Tensor, Tensor]:
        """Returns C(y, y), [groups, K, K], and w C(x, y), [groups, O, K]."""
        x, y = ((total / self.count).float() for total in self.sums)
        own = self.own.div_(self.count).baddbmm_(y.mT, y, alpha=-1)
        own = own.triu_().add_(own.triu(1).mT)
        target = self.cross.div_(self.count)
        if not self.by_outputs:
            target = self.wanted @ target
        return own, target.baddbmm_(self.wanted @ x.mT, y, alpha=-1)


def _groups(state: Quantization, name: str) -> int:
    layer = state.layers[name]
    return layer.groups if layer.op == "conv2d" else 1


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
