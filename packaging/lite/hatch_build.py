"""Where the package's files come from when qzoo-lite is built: the checkout around this folder.

An sdist has a copy of them, from which its wheel is built.
"""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

HERE = Path(__file__).resolve().parent


def contents() -> dict[str, str]:
    """Returns the folders to take in, each with its place in the distribution."""
    if (HERE / "qzoo").is_dir():  # in an sdist
        return {str(HERE / "qzoo"): "qzoo", str(HERE / "libqzoo"): "libqzoo"}
    checkout = HERE.parents[1]
    folders = {
        checkout / "qzoo": "qzoo",
        checkout / "weights_meta": "qzoo/weights_meta",
        checkout / "libqzoo": "libqzoo",
    }
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(
                f"There is no folder {folder}: qzoo-lite is built in packaging/lite of a whole "
                "checkout of qzoo, by pip 21.3 or newer (older ones copy this folder elsewhere)."
            )
    return {str(folder): place for folder, place in folders.items()}


def version() -> str:
    """Returns the version that the package gives itself."""
    text = Path(next(iter(contents())), "_version.py").read_text(encoding="utf-8")
    found = re.search(r'__version__ = "(.+)"', text)
    assert found, text
    return found[1]


class Contents(BuildHookInterface):
    """Adds the package's files to the wheel and the sdist."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Is called by hatchling before it packs a wheel or an sdist."""
        folders = contents()
        if self.target_name == "wheel":  # the C sources as a library
            folders = {folder: place for folder, place in folders.items() if place != "libqzoo"}
            build = runpy.run_path(str(Path(next(iter(folders)), "libqzoo", "build.py")))
            build["into_wheel"](build_data, False, self.app.display_warning)
        build_data["force_include"].update(folders)
