"""What a checkpoint becomes, in a process with PyTorch or without: nothing here imports it.

python -m tests.helpers.reading FILE ...
"""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Any

import numpy as np

from qzoo.artifact.format import Artifact, ModelInfo
from qzoo.errors import QzooError
from qzoo.importers.architecture import recognize, transform_input_keyword
from qzoo.importers.float_files import is_float_checkpoint
from qzoo.importers.pth import read_arrays
from qzoo.importers.published import from_checkpoint


def told(artifact: Artifact) -> list[Any]:
    """What an artifact is, and the hash of its graph and numbers, without who made it."""
    header = artifact.header()
    del header["versions"]
    sha = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for key, array in sorted(artifact.graph.tensors.items()):
        sha.update(f"{key} {array.dtype} {array.shape}".encode())
        sha.update(np.asarray(array, order="C").tobytes())
    return [artifact.info.to_dict(), sha.hexdigest()]


def read(path: str) -> Any:
    """What a file holds, or what is wrong with it; all models transform their input that can."""
    try:
        checkpoint = read_arrays(path)
        name, kwargs = recognize(checkpoint.entries)
        if is_float_checkpoint(path):
            return ["float", name, kwargs]
        transformed = True if name in ("googlenet", "inception_v3") else None
        kwargs |= transform_input_keyword(name, transformed)
        artifact = from_checkpoint(checkpoint, ModelInfo(name, kwargs), consume=True)
        assert not checkpoint.entries
        return told(artifact)
    except QzooError as error:
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    found = {path: read(path) for path in sys.argv[1:]}
    assert "torch" not in sys.modules and "torchvision" not in sys.modules
    print(json.dumps(found))
