"""What stands in for a native int8 model where PyTorch has no `torch.ao` any more."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..artifact.format import Artifact, ModelInfo
from ..artifact.grid import Grid
from ..artifact.layers import RANGED_OPS
from ..errors import BackendWarning, MissingDependencyError
from ..labels import Labelled
from .layers import module_at


class SubstituteModel(Labelled, nn.Module):
    """An int8 model that another runtime executes; call it like the native one.

    Float32 [N, 3, H, W] CPU tensors in, float32 logits [N, classes] out. Its `state_dict` holds the
    artifact's plain integers under the names that PyTorch's native model has for them. It cannot be
    trained.
    """

    def __init__(self, artifact: Artifact) -> None:
        super().__init__()
        self._info, self._layers, self._versions = artifact.info, artifact.layers, artifact.versions
        self._structure = artifact.structure
        self._compiled: Any = None
        for name in artifact.layers:
            module_at(self, name)
        for name, tensor in artifact.tensors.items():
            path, _, leaf = name.rpartition(".")
            module_at(self, path).register_buffer(leaf, tensor.clone())
        for name, layer in artifact.layers.items():
            if layer.op in RANGED_OPS:
                holder = module_at(self, name)
                scale = torch.tensor(layer.scale, dtype=torch.float64, device="cpu")
                zero_point = torch.tensor(layer.zero_point, dtype=torch.int64, device="cpu")
                holder.register_buffer("scale", scale)
                holder.register_buffer("zero_point", zero_point)
        self.eval()

    def _model_info(self) -> ModelInfo:
        return self._info

    @property
    def artifact(self) -> Artifact:
        """The numbers that the model holds now, as an artifact."""
        state = dict(self.state_dict())
        layers = {
            name: layer.on(
                Grid(float(state.pop(f"{name}.scale")), int(state.pop(f"{name}.zero_point")))
            )
            if layer.op in RANGED_OPS
            else layer
            for name, layer in self._layers.items()
        }
        return Artifact(self._info, layers, state, self._versions, self._structure)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Takes over the integers of another model of the same architecture."""
        self._compiled = None
        return super().load_state_dict(state_dict, strict, assign)

    def forward(self, x: Tensor) -> Tensor:
        """Returns float32 logits [N, classes] of float32 images [N, 3, H, W].

        Raises:
            MissingDependencyError: No other runtime is installed here.
            ArgumentError: A tensor that the runtime does not take.
        """
        if self._compiled is None:
            from .. import runtimes  # the one import upwards: this model runs where others do

            names = [name for name in runtimes.available_runtimes() if name != "torch"]
            if not names:
                raise MissingDependencyError(
                    "PyTorch cannot run this int8 model, and no other runtime is installed: "
                    "pip install onnxruntime onnx"
                )
            # Other sizes run too; of images that are none, the runtime says what is wrong.
            size = tuple(x.shape[-2:]) if x.dim() == 4 and min(x.shape[-2:]) > 0 else None
            self._compiled = runtimes.compile(self.artifact, runtime=names[0], input_size=size)
        result: Tensor = self._compiled(x)
        return result

    def save_pretrained(self, folder: str | os.PathLike[str], **info: Any) -> None:
        """Saves the model as a folder to share; see `qzoo.save_pretrained`."""
        from ..sharing import save_pretrained

        save_pretrained(self, folder, **info)

    def __getstate__(self) -> dict[str, Any]:
        # A compiled model belongs to its process; a copy compiles its own.
        return {**self.__dict__, "_compiled": None}


def substitute(artifact: Artifact, reason: str, stacklevel: int) -> SubstituteModel:
    """Returns the stand-in of a native model, with a warning that says so.

    Args:
        artifact: The stored model.
        reason: Why there is no native model, the beginning of a sentence.
        stacklevel: Stack level of the warning, counted from this function's caller.
    """
    warnings.warn(
        f"{reason}: it holds the same integers and runs on another installed runtime instead (see "
        "qzoo.compile).",
        BackendWarning,
        stacklevel=stacklevel + 1,
    )
    return SubstituteModel(artifact)
