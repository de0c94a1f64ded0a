"""From a state dict, as torchvision publishes or users save it, to an artifact.

Two kinds are read: the int8 state dict of a converted model, and the float state dict of a model
prepared for QAT (torchvision's MobileNetV3 file is one). Both arrive as plain integers and floats
from the safe reader; PyTorch is needed only for builder arguments that are unusual.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from .._core.files import File
from .._core.versions import package_versions
from ..artifact.blueprints import Blueprint
from ..artifact.format import Artifact, ModelInfo
from ..artifact.grid import Grid
from ..artifact.layers import BARE_OPS, WEIGHTED_OPS, Layer, check_weight_shape, weight_tensors
from ..artifact.tensors import Tensors
from ..backends import get_backend
from ..builder_kwargs import check_keyword
from ..errors import ArtifactError
from .names import classes_of, unwrapped, warn_of_others
from .plan import aux_classifiers, plan, without_aux
from .pth import Checkpoint, QuantizedArray, Value, in_arrays, read_arrays
from .qat_state import QatState


def read_published(path: str | os.PathLike[str] | File, weights: Any) -> Artifact:
    """Reads the published .pth file of a weights member into an artifact.

    Args:
        path: The file, already verified, or the file itself where it is open already.
        weights: The `PublishedWeights`, or the member of an enum, whose file it is.

    Raises:
        ArtifactError: The file is damaged, hostile, or not for this architecture.
    """
    return from_checkpoint(read_arrays(path), weights.info(), consume=True)


def from_checkpoint(checkpoint: Checkpoint, info: ModelInfo, consume: bool = False) -> Artifact:
    """Makes an artifact of a state dict.

    Args:
        checkpoint: What the safe reader found, arrays or tensors.
        info: What the model is. A missing `num_classes` is taken from the classifier; a missing
            backend from the weights (per channel: fbgemm, per tensor: qnnpack).
        consume: Whether to empty `checkpoint.entries` on the way, so that each weight is in memory
            once and not twice.

    Raises:
        ArtifactError: An entry is missing, superfluous, of the wrong kind, or of another shape
            than the architecture's.
        ArgumentError: The builder arguments in `info` do not build the architecture.
        UnknownNameError: An unknown architecture or backend.
    """
    if info.backend is not None:
        get_backend(info.backend)
    aux = {"aux_logits": False} if aux_classifiers(info.architecture) else {}
    kwargs = {**info.builder_kwargs, **aux}
    blueprint = plan(info.architecture, kwargs)
    warn_of_others(checkpoint.entries)
    entries = without_aux(info.architecture, unwrapped(checkpoint.entries))
    if consume:
        checkpoint.entries.clear()
    head = str(blueprint.head)
    classes = kwargs.get("num_classes", classes_of(entries, head))
    if classes != 1000:
        kwargs["num_classes"] = classes
        check_keyword(info.name, "num_classes", classes)
    shapes = blueprint.shapes
    shapes[head] = (classes, *shapes[head][1:])
    qat = QatState.find(entries)
    if qat is not None:
        qat.use_eps(blueprint.eps)
    backend = info.backend or _guess_backend(entries, qat)
    layers, tensors = _numbers(blueprint, shapes, qat or _Int8State(entries), backend)
    known = dataclasses.replace(info, builder_kwargs=kwargs, backend=backend)
    return Artifact(known, layers, Tensors(tensors), package_versions())


def _numbers(
    blueprint: Blueprint,
    shapes: Mapping[str, tuple[int, ...]],
    reader: QatState | _Int8State,
    backend: str,
) -> tuple[dict[str, Layer], dict[str, np.ndarray]]:
    """Returns an architecture's layers and their tensors, as a state dict holds them."""
    layers: dict[str, Layer] = {}
    tensors: dict[str, np.ndarray] = {}
    for name, layer in blueprint.layers().items():
        layers[name] = layer
        if layer.op not in BARE_OPS:
            layers[name] = layer.on(Grid(*reader.output_range(name, backend)))
            layers[name].check(name)
        if layer.op in WEIGHTED_OPS:
            tensors |= weight_tensors(name, *reader.weight(name, layer.op, shapes[name]))
    reader.check_all_used()
    return layers, tensors


class _Int8State:
    """Reads a converted model's state dict, taking out entry by entry."""

    def __init__(self, entries: dict[str, Any]) -> None:
        self._entries = entries

    def output_range(self, name: str, backend: str) -> tuple[float, int]:
        scale = float(self._number(f"{name}.scale"))
        zero_point = float(self._number(f"{name}.zero_point"))
        if not zero_point.is_integer():
            raise ArtifactError(f"The zero point of layer {name!r} is {zero_point}, no integer.")
        return scale, int(zero_point)

    def weight(
        self, name: str, op: str, shape: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        weight, bias = self._packed_linear(name) if op == "linear" else self._pair(name)
        if not isinstance(weight, QuantizedArray) or weight.values.dtype != np.int8:
            raise ArtifactError(
                f"The weight of layer {name!r} is not an int8 tensor: this is not the state dict "
                "of a converted model."
            )
        check_weight_shape(name, weight.values, shape)
        if weight.axis not in (None, 0):
            raise ArtifactError(f"The weight of layer {name!r} has scales along another axis.")
        if bias is not None and not (isinstance(bias, np.ndarray) and bias.dtype.kind == "f"):
            raise ArtifactError(f"The bias of layer {name!r} is not a float tensor.")
        return weight.values, weight.scale, weight.zero_point, bias

    def check_all_used(self) -> None:
        if extra := list(self._entries):
            raise ArtifactError(
                f"The checkpoint has {len(extra)} entries that this architecture lacks, such as "
                f"{extra[0][:100]!r}: it is for another architecture or other builder arguments."
            )

    def _take(self, key: str, default: str | None = None) -> Value:
        """Takes an entry out, with arrays in the place of tensors."""
        return in_arrays(self._entries.pop(key, default))

    def _packed_linear(self, name: str) -> tuple[Any, Any]:
        """Finds a linear layer's parameters as versions 1, 2 and 3 of its format store them."""
        inner = f"{name}._packed_params"
        dtype = self._take(f"{inner}.dtype", "torch.qint8")
        if not isinstance(dtype, str) or dtype != "torch.qint8":
            raise ArtifactError(f"Layer {name!r} stores {str(dtype)[:40]} weights, not int8 ones.")
        packed: Any = self._take(f"{inner}._packed_params")
        if packed is not None:
            if not isinstance(packed, tuple) or len(packed) != 2:
                raise ArtifactError(f"Layer {name!r} has packed parameters of an unknown form.")
            return packed
        return self._pair(inner) if f"{inner}.weight" in self._entries else self._pair(name)

    def _pair(self, name: str) -> tuple[Any, Any]:
        if f"{name}.weight" not in self._entries:
            raise ArtifactError(_missing(f"{name}.weight"))
        return self._take(f"{name}.weight"), self._take(f"{name}.bias")

    def _number(self, key: str) -> float:
        if key not in self._entries:
            raise ArtifactError(_missing(key))
        value = self._take(key)
        if isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind != "c":
            return value.item()
        if isinstance(value, (int, float)):
            return value
        raise ArtifactError(f"The entry {key!r} of the checkpoint is not a single number.")


def _missing(key: str) -> str:
    return (
        f"The checkpoint lacks {key!r}: it is incomplete, of another architecture, or the float "
        "state dict of a model that was never converted or prepared for QAT."
    )


def _guess_backend(entries: Mapping[str, Any], qat: QatState | None) -> str:
    if qat is not None:
        return qat.guess_backend()
    arrays = (v[0] if isinstance(v, tuple) and v else v for v in entries.values())
    per_channel = any(isinstance(v, QuantizedArray) and v.axis is not None for v in arrays)
    return "fbgemm" if per_channel else "qnnpack"
