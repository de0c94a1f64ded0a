"""Writes the graphs of all builders down, so that nothing records them again: docs/artifact.md.

python -m qzoo.models.blueprints
"""

from __future__ import annotations

import json
import lzma
from dataclasses import asdict
from pathlib import Path

from .. import artifact
from .._core.files import write_atomically
from ..artifact.blueprints import FILE, blueprint_key
from ..reference.nodes import blueprint
from ..reference.trace import record
from ..registry import get_entry, list_models
from .plan import plan


def packed_blueprints() -> bytes:
    """Returns the content of the stored file: all builders with their usual keywords."""
    stored = {}
    for name in list_models():
        entry = get_entry(name)
        for kwargs in ({}, dict(entry.pretrained_kwargs)):
            _, layers = plan(entry, kwargs)
            found = blueprint(record(entry.skeleton(kwargs), layers), layers)
            stored[blueprint_key(name, kwargs)] = asdict(found)
    text = json.dumps(stored, separators=(",", ":"), sort_keys=True)
    return lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME)


if __name__ == "__main__":
    write_atomically(Path(artifact.__path__[0]) / FILE, packed_blueprints())
