"""From a float model and its artifact to the simulation of both."""

from __future__ import annotations

from torch import nn

from ..artifact.format import Artifact
from ..artifact.native import model_info
from ..errors import ArgumentError
from .simulate import Simulation
from .state import fused_copy


def simulate(model: nn.Module, artifact: Artifact) -> Simulation:
    """Returns the simulation of a float model and the int8 model that was made of it.

    Args:
        model: The float model, as it was quantized; left as it is.
        artifact: The int8 model.

    Raises:
        ArgumentError: The two do not belong together.
    """
    made, wanted = model_info(model).architecture, artifact.info.architecture
    if made != wanted:
        raise ArgumentError(
            f"The float model is a {made}, but the int8 model a {wanted}: give the float model "
            "that was quantized."
        )
    return Simulation(fused_copy(model), artifact)
