"""Programs for 64-bit ARM, which an emulator runs on any machine: Debian's package qemu-user."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path
from typing import Literal

import pytest

from qzoo.libqzoo.build import compiler
from tests.helpers.programs import program

#: Debian's package libc6-arm64-cross: the C library that programs load.
_ROOT = Path("/usr/aarch64-linux-gnu")


def _qemu() -> str:
    """Returns the emulator, or skips the test."""
    found = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if found is None or not _ROOT.is_dir():
        pytest.skip("no emulator of ARM here: apt-get install qemu-user libc6-arm64-cross")
    return found


def arm_program(
    target: Path, source: Path, *flags: str, library: Literal["none", "sources"] = "none"
) -> Path:
    """Compiles a C file for 64-bit ARM; skips the test where that or running it is not possible.

    Arguments and result are those of `program`.
    """
    _qemu()
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("the package ziglang, which compiles for ARM, is not installed")
    command, _ = compiler("linux-aarch64")
    return program(target, source, *flags, command=command, library=library)


def run_arm(processor: str, program: Path, *arguments: object) -> str:
    """Runs a program on an emulated processor, and returns what it printed."""
    command = [_qemu(), "-cpu", processor, "-L", str(_ROOT), str(program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
