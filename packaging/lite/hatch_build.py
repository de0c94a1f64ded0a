"""Where the package's files come from when qzoo-lite is built: the checkout around this folder.

An sdist has a copy of them, from which its wheel is built.
"""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

HERE = Path(__file__).resolve().parent


def top() -> Path:
    """Returns the folder with the package and the C library: the sdist's or the checkout's."""
    checkout = HERE.parents[1]
    for folder in (HERE, checkout):
        if (folder / "qzoo").is_dir():
            return folder
    raise FileNotFoundError(
        f"There is no folder {checkout / 'qzoo'}: qzoo-lite is built in packaging/lite of a whole "
        "checkout of qzoo, by pip 21.3 or newer (older ones copy this folder elsewhere)."
    )


def contents() -> dict[str, str]:
    """Returns the files and folders to take in, each with its place in the distribution."""
    folder = top()
    if folder == HERE:
        return {str(folder / name): name for name in ("qzoo", "libqzoo")}
    # What the distributions of qzoo have, and nothing else that lies in the checkout.
    package = WheelBuilder(str(folder)).recurse_included_files()
    everything = SdistBuilder(str(folder)).recurse_included_files()
    library = [f for f in everything if Path(f.relative_path).parts[0] == "libqzoo"]
    return {f.path: f.distribution_path for f in [*package, *library]}


def version() -> str:
    """Returns the version that the package gives itself."""
    text = (top() / "qzoo" / "_version.py").read_text(encoding="utf-8")
    found = re.search(r'__version__ = "(.+)"', text)
    assert found, text
    return found[1]


class Contents(BuildHookInterface):
    """Adds the package's files to the wheel and the sdist."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Is called by hatchling before it packs a wheel or an sdist."""
        files = contents()
        if self.target_name == "wheel":  # the C sources as a library
            files = {path: to for path, to in files.items() if Path(to).parts[0] != "libqzoo"}
            build = runpy.run_path(str(top() / "qzoo" / "libqzoo" / "build.py"))
            build["into_wheel"](build_data, False, self.app.display_warning)
        build_data["force_include"].update(files)
