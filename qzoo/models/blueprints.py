"""Writes the graphs of all builders down, so that nothing records them again: docs/artifact.md.

python -m qzoo.models.blueprints
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import artifact
from .._core.files import write_atomically
from ..artifact.blueprints import FILE, Blueprint, blueprint_key
from ..reference.nodes import blueprint
from ..reference.trace import record
from ..registry import get_entry, list_models
from .plan import plan


def packed_blueprints() -> bytes:
    """Returns the content of the stored file: all builders with their usual keywords."""
    stored = {
        blueprint_key(name, kwargs): asdict(make_blueprint(name, kwargs))
        for name in list_models()
        for kwargs in ({}, get_entry(name).pretrained_kwargs)
    }
    text = json.dumps(stored, separators=(",", ":"))
    return lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME)


def make_blueprint(name: str, kwargs: Mapping[str, Any]) -> Blueprint:
    """Records a builder's forward pass, and writes it down.

    Args:
        name: The registry's name of the model.
        kwargs: The model's own keywords, which may come from a file: they are checked.

    Raises:
        ArgumentError: The keywords do not build this model.
        ArtifactError: The forward pass does something that no operation of the format does.
        UnknownNameError: There is no model of this name.
    """
    entry = get_entry(name)
    _, layers = plan(entry, kwargs)
    return blueprint(record(entry.skeleton(kwargs), layers), layers)


if __name__ == "__main__":
    write_atomically(Path(artifact.__path__[0]) / FILE, packed_blueprints())
