"""The ONNX form of an artifact, in memory, for the runtimes that read ONNX."""

from __future__ import annotations

import re
from collections.abc import Collection

from ..artifact.format import Artifact
from ..export.onnx import onnx_bytes
from ..export.plan import make_plan


class OnnxSource:
    """Makes the ONNX form of one artifact for each size of images.

    Args:
        artifact: The model.
        runtime: The runtime that the graph is shaped for.
    """

    def __init__(self, artifact: Artifact, runtime: str) -> None:
        self.artifact, self.runtime = artifact, runtime

    def serialized(self, height: int, width: int) -> bytes:
        """Returns the serialized ONNX model for any number of images of one size."""
        plan = make_plan(self.artifact, input_size=(height, width))
        return onnx_bytes(plan, runtime=self.runtime, described=False)

    def layers_of(self, nodes: str) -> set[str]:
        """Returns the layers that OpenVINO made an operation of.

        Args:
            nodes: Names of ONNX nodes with commas between them, which names may have, too; parts
                of a layer are called after it, with a slash and more behind.
        """
        names = (node.name for node in self.artifact.graph.nodes if node.weighted)
        longest = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
        return set(re.findall(f",({longest})(?=[,/])", f",{nodes},"))

    def layers_without(self, integer: Collection[str]) -> tuple[str, ...]:
        """Returns the layers with int8 weights that run and are not among `integer`.

        Layers that the artifact itself keeps in float have none.
        """
        return tuple(
            node.name
            for node in self.artifact.graph.nodes
            if node.weighted and not node.float and node.name not in integer
        )
