"""What may lie where a cache expects a file of its own."""

from __future__ import annotations

import os
from pathlib import Path

OBSTACLES = ("pipe", "folder", "link", "second name")


def put(kind: str, path: Path) -> Path:
    """Puts an obstacle at `path`; returns a file elsewhere that must still read b"mine" later."""
    outside = path.parents[1] / "outside"
    outside.write_bytes(b"mine")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        (path / "full").mkdir(parents=True)
    elif kind == "link":
        path.symlink_to(outside)
    else:
        os.link(outside, path)
    return outside
