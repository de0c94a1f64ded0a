"""Float weights as files that say which model they are: what `qzoo quantize` starts from."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import nn

from . import strict_json
from .artifact.folders import float_file
from .artifact.format import ModelInfo
from .artifact.native import attach_info, model_info
from .artifact.tensor_file import read_metadata, read_tensors
from .errors import ArtifactError
from .files import File, RefusedError, write_atomically
from .registry import get_model
from .seen import check_seen

#: The header key under which a file of float weights says what they are.
_HEADER = "qzoo-float"


def save_float(model: nn.Module, path: str | os.PathLike[str], **info: Any) -> None:
    """Writes float weights with a description of the model, whole or not at all.

    Args:
        model: A float model from one of the zoo's builders, perhaps fine-tuned.
        path: The file; usually ends in ".safetensors".
        **info: Fields of `ModelInfo` to record instead of what the model carries, such as
            `classes=["cat", "dog"]`, `transforms=preset.to_dict()`.

    Raises:
        ArtifactError: The model is not of the zoo, or the file cannot be written.
    """
    known = dataclasses.replace(model_info(model), **info).to_dict()
    tensors = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(path, to_safetensors(tensors, metadata={_HEADER: json.dumps(known)}))


def load_float(path: str | os.PathLike[str]) -> nn.Module:
    """Builds the float model that `save_float` wrote, in eval mode; runs no code from the file.

    Args:
        path: The file, or a folder of `qzoo finetune` or references/train.py.

    Raises:
        ArtifactError: The file is missing, damaged, or not of this kind.
    """
    path = float_file(path)
    if not path.is_file():
        raise ArtifactError(f"There is no checkpoint {path}; references/train.py writes one.")
    try:
        with File(path) as file:
            metadata, state = read_tensors(file)
        info = ModelInfo(**strict_json.parse(metadata[_HEADER]))
        check_seen(info.seen)
        # Every weight is replaced, so that the random ones before are nobody's business.
        with torch.random.fork_rng(devices=[]):
            model = get_model(info.architecture, **info.builder_kwargs)
        model.load_state_dict(state)
    except (RefusedError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ArtifactError(
            f"{path} is not a float checkpoint of qzoo (references/train.py and "
            f"qzoo.checkpoint.save_float write them), or is damaged ({str(error)[:200]})."
        ) from None
    return attach_info(model, info).eval()


def is_float_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Says whether a file is one that `save_float` wrote."""
    try:
        with File(path) as file:
            return _HEADER in read_metadata(file)
    except (OSError, RefusedError):
        return False
