"""The JSON files of `weights_meta/`: the only source of facts about models and their weights."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from .errors import QzooError

_PACKAGE = Path(__file__).parent


def metadata_folder() -> Path:
    """Returns the folder of the JSON files: inside the wheel, or beside `qzoo/` in a checkout."""
    inside = _PACKAGE / "weights_meta"
    return inside if inside.is_dir() else _PACKAGE.parent / "weights_meta"


@functools.cache
def architectures() -> tuple[str, ...]:
    """Returns the names of all models that there is metadata of, sorted."""
    return tuple(sorted(p.stem for p in metadata_folder().glob("*.json") if p.stem != "schema"))


@functools.cache
def read_metadata(architecture: str) -> dict[str, Any]:
    """Returns the metadata of an architecture, as its JSON file holds it.

    Raises:
        QzooError: The installation lacks the file.
    """
    path = metadata_folder() / f"{architecture}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise QzooError(
            f"The weights metadata {path} cannot be read ({error}); install qzoo again."
        ) from None


def enum_name(architecture: str) -> str:
    """Returns what the enum of a model's int8 weights is called."""
    float_name: str = read_metadata(architecture)["float_weights"]
    return float_name.replace("_Weights", "_QuantizedWeights")
