"""Builds libqzoo, the C library, while hatchling packs the package."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Library(BuildHookInterface):
    """Adds the library to a wheel; an editable installation gets it in its place."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Is called by hatchling before it packs."""
        if self.target_name == "wheel":
            # By itself: the package's own requirements are not there.
            build = runpy.run_path(str(Path(self.root, "qzoo", "libqzoo", "build.py")))
            build["into_wheel"](build_data, version == "editable", self.app.display_warning)
