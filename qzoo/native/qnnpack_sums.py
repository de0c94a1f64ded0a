"""What PyTorch's qnnpack engine cannot add, found before a model runs."""

from __future__ import annotations

from ..artifact.graph import Graph
from ..errors import ArtifactError

#: How an addend's scale may relate to the sum's: pytorch_qnnp_create_add_nc_q8 refuses others.
LOWEST, HIGHEST = 2.0**-14, 2.0**8


def check_sums(graph: Graph) -> None:
    """Checks that qnnpack can compute the sums of a model.

    Raises:
        ArtifactError: It would end in an internal error in the middle of a forward pass.
    """
    scales = {node.name: node.grid.scale for node in graph.nodes if node.grid is not None}
    for node in graph.nodes:
        for addend in node.inputs if node.op == "add" else ():
            if not LOWEST <= scales[addend] / scales[node.name] < HIGHEST:
                raise ArtifactError(
                    f"The engine qnnpack cannot compute the sum {node.name!r}, because the scales "
                    f"of what it adds ({scales[addend]:.2g}) and of the result "
                    f"({scales[node.name]:.2g}) differ too much: load the model with "
                    "backend='fbgemm' or another, or calibrate it again."
                )
