"""What PyTorch's qnnpack engine cannot add, found before a model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import nn

from ..artifact.grid import HARDSIGMOID_GRID
from ..artifact.layers import RANGED_OPS, Layer
from ..errors import ArtifactError

#: How an addend's scale may relate to the sum's: pytorch_qnnp_create_add_nc_q8 refuses others.
LOWEST, HIGHEST = 2.0**-14, 2.0**8


def check_sums(make_skeleton: Callable[[], nn.Module], layers: Mapping[str, Layer]) -> None:
    """Checks that qnnpack can compute the sums of a model.

    Args:
        make_skeleton: Makes the float model on the meta device, for the few that need a look.
        layers: Module name to layer.

    Raises:
        ArtifactError: It would end in an internal error in the middle of a forward pass.
    """
    sums = [layer.scale for layer in layers.values() if layer.op == "functional"]
    # Most models are done here: no two scales differ that much, whichever are added.
    ranged = [layer.scale for layer in layers.values() if layer.op in RANGED_OPS]
    scales = [HARDSIGMOID_GRID.scale, *ranged]
    if not sums or (min(scales) >= LOWEST * max(sums) and max(scales) < HIGHEST * min(sums)):
        return
    for name, scale, addend in _sums(make_skeleton(), layers):
        if not LOWEST <= addend / scale < HIGHEST:
            raise ArtifactError(
                f"The engine qnnpack cannot compute the sum {name!r}, because the scales of what "
                f"it adds ({addend:.2g}) and of the result ({scale:.2g}) differ too much: load the "
                "model with backend='fbgemm' or another, or calibrate it again."
            )


def _sums(skeleton: nn.Module, layers: Mapping[str, Layer]) -> Iterator[tuple[str, float, float]]:
    """Gives each sum's name, its scale, and the scale of each of its addends."""
    from ..reference.calls import grid_source  # made of artifacts, and most models never need it
    from ..reference.trace import record

    ranged = {name: layer.scale for name, layer in layers.items() if layer.op in RANGED_OPS}
    for node in record(skeleton, layers).graph.nodes:
        if node.op == "call_module" and node.meta["kind"] in ("add", "add_relu"):
            for addend in node.all_input_nodes:
                source = grid_source(addend, ranged)
                name = str(node.target)
                yield name, ranged[name], ranged.get(source, HARDSIGMOID_GRID.scale)
