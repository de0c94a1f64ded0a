"""From a float model and its artifact to the simulation of both.

Cross-layer equalization scales the channels of the float model before it is quantized. An artifact
does not hold the factors, but its weights show them: they are found again by least squares.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...artifact.format import Artifact
from ...backends import get_backend
from ...errors import ArgumentError
from ...native.model import model_info
from ..data import Calibration, nothing
from ..simulate import Simulation, int8_weight
from ..state import Quantization
from ..steps.channels import FIXED, Channels
from ..steps.equalize import columns_of, scale_channels

#: Passes over the layers; later ones use what layers further on have shown of a channel.
SWEEPS = 3


def simulate(model: nn.Module, artifact: Artifact, images: Tensor | None = None) -> Simulation:
    """Returns the simulation of a float model and the int8 model that was made of it.

    Where the int8 model's channels were equalized, the float model's are scaled likewise, which
    changes no answer of it.

    Args:
        model: The float model, as it was quantized; left as it is.
        artifact: The int8 model.
        images: A batch to check on that the float model computes what its architecture does,
            float32 [N, 3, H, W]; None takes noise.

    Raises:
        ArgumentError: The two do not belong together, or the float model was edited.
    """
    made, wanted = model_info(model).architecture, artifact.info.architecture
    if made != wanted:
        raise ArgumentError(
            f"The float model is a {made}, but the int8 model a {wanted}: give the float model "
            "that was quantized."
        )
    backend = get_backend(str(artifact.info.backend))
    state = Quantization(model, backend, _only(images), progress=False)
    # Says so where the two do not fit, before their weights are compared.
    simulation = Simulation(state.fused, artifact)
    if not artifact.info.recipe.get("equalized_channels"):
        return simulation
    groups = Channels(state)
    scale_channels(state, groups, _factors(state, groups, artifact))
    return Simulation(state.fused, artifact)


def _only(images: Tensor | None) -> Calibration:
    if images is None:
        return nothing()
    return Calibration(lambda *_: iter([images]), len(images), len(images), lambda _: "", None)


def _factors(state: Quantization, groups: Channels, artifact: Artifact) -> Tensor:
    """Returns the factor of each group of channels, float32 [groups]."""
    factors = torch.ones(groups.count, dtype=torch.float32, device="cpu")
    for _ in range(SWEEPS):
        products, squares = torch.zeros(2, groups.count, dtype=torch.float32, device="cpu")
        for name in state.weighted():
            columns = factors[columns_of(state, name, groups.inputs[name])]
            weight = state.weight(name)
            plain = weight / columns.reshape(*columns.shape, *[1] * (weight.dim() - 2))
            given = int8_weight(artifact, name)[0].flatten(1)
            plain = plain.flatten(1)
            # Weighed by size: each row as if its largest layer had the power 1.
            power = plain.square().sum(1).clamp(min=torch.finfo(torch.float32).tiny)
            rows = groups.outputs[name]
            products.index_add_(0, rows, (given * plain).sum(1) / power)
            squares.index_add_(0, rows, (given.square().sum(1) > 0).float())
            known = squares[rows] > 0
            factors[rows[known]] = (products / squares.clamp(min=1))[rows[known]].clamp(min=1e-6)
            factors[FIXED] = 1.0
    return factors
