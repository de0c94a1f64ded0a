"""Programs for other processors, which an emulator runs: Debian's package qemu-user."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path
from typing import Literal

import pytest

from qzoo.libqzoo.build import compiler, this_machine
from tests.helpers.programs import program


def _emulator(target: str) -> list[str]:
    """Returns the command that runs programs for a target of libqzoo's build, or skips the test."""
    machine = target.removeprefix("linux-")
    found = shutil.which(f"qemu-{machine}") or shutil.which(f"qemu-{machine}-static")
    # Whose C library programs load: this machine's, or that of Debian's package libc6-arm64-cross.
    root = Path("/") if target == this_machine() else Path(f"/usr/{machine}-linux-gnu")
    if found is None or not root.is_dir():
        pytest.skip(f"nothing emulates {machine}: apt-get install qemu-user libc6-arm64-cross")
    return [found, "-L", str(root)]


def emulated_program(
    target: str,
    made: Path,
    source: Path,
    *flags: str,
    library: Literal["none", "sources"] = "none",
) -> Path:
    """Compiles a C file for a target; skips the test where that or running it is not possible.

    The other arguments and the result are those of `program`.
    """
    _emulator(target)
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("the package ziglang, which compiles for other machines, is not installed")
    command, _ = compiler(target)
    return program(made, source, *flags, command=command, library=library)


def run_emulated(target: str, processor: str, program: Path, *arguments: object) -> str:
    """Runs a program on an emulated processor, and returns what it printed."""
    command = [*_emulator(target), "-cpu", processor, str(program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
