"""Files of float weights: what they hold, told without building a model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from .._core.files import File, RefusedError, opened
from ..artifact.folders import KINDS
from ..artifact.tensor_file import read_metadata, read_tensors
from ..artifact.tensors import Tensors
from ..errors import ArgumentError, ArtifactError, QzooError
from .architecture import expected
from .names import unwrapped, weight_shapes
from .pth import QuantizedArray, read_arrays, read_checkpoint
from .qat_state import QatState

#: The header key under which a file of float weights says what they are.
FLOAT_HEADER = "qzoo-float"


def is_float_checkpoint(path: str | os.PathLike[str] | File, part: str | None = None) -> bool:
    """Says whether a file holds float weights: one of `save_float`, or a state dict.

    Args:
        path: The file, or the file itself where it is open already.
        part: Key of the state dict in a training checkpoint.
    """
    try:
        with opened(path) as file:
            if file.read_bytes(0, min(9, file.size))[8:] == b"{":
                # Files of qzoo's own say it in front, so that the rest need not be read twice.
                for key in KINDS.keys() & read_metadata(file).keys():
                    return KINDS[key] == "float"
            metadata, entries = read_weights(file, part)
            return FLOAT_HEADER in metadata or bool(float_state(file, entries))
    except (OSError, RefusedError, QzooError):
        return False


def read_weights(
    file: File, part: str | None, tensors: bool = False
) -> tuple[dict[str, str], dict[str, Any]]:
    """Returns the texts of a safetensors file, and the numbers of this or a `torch.save` file.

    Args:
        file: The open file.
        part: Key of the state dict in a training checkpoint.
        tensors: Whether the numbers are to be PyTorch's tensors instead of numpy arrays.

    Raises:
        ArgumentError: A part of a file that has none.
        ArtifactError: The file is damaged, or holds an int8 artifact.
    """
    head = file.read_bytes(0, min(9, file.size))
    if head[8:] == b"{":
        if part is not None:
            raise ArgumentError(
                f"{file.path} is a safetensors file, which has no parts: drop part."
            )
        metadata, arrays = read_tensors(file)
        if "qzoo" in metadata:
            raise ArtifactError(
                f"{file.path} is not a float checkpoint: it is an int8 artifact (qzoo.load)."
            )
        return metadata, dict(Tensors(arrays) if tensors else arrays)
    try:
        checkpoint = (read_checkpoint if tensors else read_arrays)(file, part)
        # A state dict that qzoo wrote says what it is, too.
        note = checkpoint.note(FLOAT_HEADER)
        return {} if note is None else {FLOAT_HEADER: note}, checkpoint.entries
    except ArtifactError as error:
        if head.startswith((b"PK", b"\x80")):
            raise
        reason = str(error).removeprefix(f"{file.path} ")
        raise ArtifactError(f"{file.path} is not a float checkpoint: it {reason}") from None


def float_state(file: File, entries: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entries of the model under its own names.

    Raises:
        ArtifactError: They are not those of a float model.
    """
    try:
        own = unwrapped(entries)
    except ArtifactError as error:
        raise ArtifactError(f"{file.path}: {error}") from None
    if not holds_float_weights(own):
        raise ArtifactError(
            f"{file.path} is not a float checkpoint: it is the state dict of an int8 model or of "
            "one prepared for QAT (qzoo convert makes an artifact of it)."
        )
    if not any(len(shape) == 4 for shape in weight_shapes(own).values()):
        raise ArtifactError(
            f"{file.path} is not a float checkpoint: it holds no convolutions by name. "
            + expected(entries)
        )
    return own


def holds_float_weights(entries: Mapping[str, Any]) -> bool:
    """Says whether a state dict is of a float model, neither converted nor prepared for QAT."""
    if QatState.find(entries) is not None:
        return False
    values = (v[0] if isinstance(v, tuple) and v else v for v in entries.values())
    packed = any("._packed_params" in key or key.endswith(".zero_point") for key in entries)
    return not packed and not any(isinstance(value, QuantizedArray) for value in values)
