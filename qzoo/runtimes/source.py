"""The ONNX form of an artifact, in memory, for the runtimes that read ONNX."""

from __future__ import annotations

from collections.abc import Collection

from ..artifact.format import Artifact
from ..export.onnx import to_onnx
from ..reference import build_reference


class OnnxSource:
    """Makes the ONNX form of one artifact for each size of images.

    Args:
        artifact: The model.
        runtime: The runtime that the graph is shaped for.
    """

    def __init__(self, artifact: Artifact, runtime: str) -> None:
        self.artifact, self.runtime = artifact, runtime
        self._reference = build_reference(artifact)  # shares the artifact's tensors

    def serialized(self, height: int, width: int) -> bytes:
        """Returns the serialized ONNX model for any number of images of one size."""
        size = (height, width)
        proto = to_onnx(self._reference, input_size=size, runtime=self.runtime)
        serialized: bytes = proto.SerializeToString()
        return serialized

    def layers_without(self, integer: Collection[str]) -> tuple[str, ...]:
        """Returns the layers with int8 weights that run and are not among `integer`.

        Layers that the artifact itself keeps in float have none.
        """
        # Auxiliary classifiers have weights too, but no part in the answer.
        used = {node.target for node in self._reference.graph.nodes if node.op == "get_attr"}
        return tuple(
            name
            for name, layer in self.artifact.layers.items()
            if f"{name}.weight" in used and name not in integer and not layer.float
        )
