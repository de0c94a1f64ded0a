"""Builds libqzoo from its C sources: when the package is installed, or by hand in a checkout.

`python -m qzoo.libqzoo.build` puts it beside this file. Nothing but Python's own library is used
here, so that the build of the package can run this file by itself.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

#: One floating-point operation must stay one, whatever the processor could do at once.
FLAGS = (
    "-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-fPIC",
    "-Wall", "-Wextra",
    # What some compilers only warn of.
    "-Werror=incompatible-pointer-types", "-Werror=int-conversion",
    "-Werror=implicit-function-declaration",
)  # fmt: skip


class Target(NamedTuple):
    """A kind of machine that the package ziglang compiles for, on any other."""

    triple: str  #: What ziglang calls it; with the oldest system that the library shall run on.
    file: str  #: What the library is called there.
    tag: str  #: The platforms that a wheel with the library is for.


#: By the names of `this_machine`.
TARGETS = {
    "linux-x86_64": Target(
        "x86_64-linux-gnu.2.17", "_qzoo.so", "manylinux_2_17_x86_64.manylinux2014_x86_64"
    ),
    "linux-aarch64": Target(
        "aarch64-linux-gnu.2.17", "_qzoo.so", "manylinux_2_17_aarch64.manylinux2014_aarch64"
    ),
    "macos-arm64": Target("aarch64-macos.11.0", "_qzoo.dylib", "macosx_11_0_arm64"),
    "macos-x86_64": Target("x86_64-macos.11.0", "_qzoo.dylib", "macosx_11_0_x86_64"),
    "windows-x86_64": Target("x86_64-windows-gnu", "_qzoo.dll", "win_amd64"),
    "windows-arm64": Target("aarch64-windows-gnu", "_qzoo.dll", "win_arm64"),
}


class BuildError(Exception):
    """Why there is no library: one sentence without a full stop."""


def sources() -> Path:
    """Returns the folder of the C sources, beside the package in a checkout or an sdist."""
    return Path(__file__).resolve().parents[2] / "libqzoo"


def this_machine() -> str:
    """Returns the kind of this machine: one of TARGETS, or one that ziglang is not asked for."""
    system = platform.system().lower().replace("darwin", "macos")
    if system == "linux" and platform.libc_ver()[0] != "glibc":
        system = "musl"
    machine = platform.machine().lower().replace("amd64", "x86_64")
    return f"{system}-{machine if sys.maxsize > 2**32 else '32-bit'}"


def library_name(machine: str) -> str:
    """Returns how the library's file is called on a kind of machine."""
    return TARGETS[machine].file if machine in TARGETS else "_qzoo.so"


def compiler(machine: str) -> tuple[list[str], str]:
    """Returns the command that compiles for a machine, and the platforms of a wheel with that.

    For this machine that is QZOO_CC, else the package ziglang's, else the system's; only ziglang's
    compiles for others.

    Raises:
        BuildError: There is none.
    """
    target = TARGETS.get(machine)
    here = machine == this_machine()
    own = shlex.split(os.environ.get("QZOO_CC", "")) if here else []
    if target and not own and importlib.util.find_spec("ziglang") is not None:
        # Without a target it would compile for the very processor that it runs on.
        return [sys.executable, "-m", "ziglang", "cc", "-target", target.triple], target.tag
    if not here:
        raise BuildError(f"compiling for {machine} needs the package ziglang: pip install ziglang")
    if not own and (found := shutil.which("cc")) is not None:
        own = [found]
    if not own:
        raise BuildError("there is no C compiler: install ziglang, or name one in QZOO_CC")
    # Other systems' C libraries are not tied to the version that the library was linked with.
    if target and not machine.startswith("linux"):
        return own, target.tag
    return own, sysconfig.get_platform().replace("-", "_").replace(".", "_")


def build(made: Path, machine: str, *more: str) -> str:
    """Compiles the library.

    Args:
        made: The file to write, whole or not at all.
        machine: What for, of the kinds in TARGETS or this machine's own.
        *more: Further flags.

    Returns:
        The platforms that a wheel with it is for.

    Raises:
        BuildError: There is no compiler, or it fails.
    """
    files = [str(path) for path in sorted((sources() / "src").glob("*.c"))]
    if not files:
        raise BuildError(f"there are no C sources in {sources()}: build in a checkout of qzoo")
    command, tag = compiler(machine)
    flags = [*FLAGS, *more, "-shared"]
    if made.suffix == ".dylib":  # else its name is that of the temporary file
        flags.append(f"-Wl,-install_name,@rpath/{made.name}")
    with tempfile.TemporaryDirectory(prefix="qzoo-") as folder:
        fresh = Path(folder) / made.name
        environment = {
            # The compiler's own cache would stay behind.
            "ZIG_GLOBAL_CACHE_DIR": folder,
            "ZIG_LOCAL_CACHE_DIR": folder,
            **os.environ,
            "MACOSX_DEPLOYMENT_TARGET": "11.0",  # for compilers that TARGETS does not tell it
        }
        try:
            done = subprocess.run(
                [*command, *flags, *files, "-o", str(fresh), "-pthread", "-lm"],
                capture_output=True,
                text=True,
                env=environment,
            )
        except OSError as error:
            raise BuildError(f"{command[0]} cannot be run ({error})") from None
        if done.returncode or not fresh.is_file():
            lines = (done.stderr.strip() or "no output").splitlines()
            why = next((line for line in lines if "error" in line.lower()), lines[-1])
            raise BuildError(f"{shlex.join(command)} failed: {why[:300]}")
        beside = made.with_name(f".{made.name}.{os.getpid()}")
        shutil.copyfile(fresh, beside)
        beside.replace(made)
    return tag


def into_wheel(build_data: dict[str, Any], editable: bool, warn: Callable[[str], None]) -> None:
    """Adds the library to what hatchling packs; without a compiler, the package does without.

    QZOO_TARGET names the kind of machine that the wheel is for, where that is not this one; such a
    wheel is made with the library or not at all.

    Args:
        build_data: Hatchling's: which files a wheel has besides, and how it is called.
        editable: Whether the library goes beside this file instead.
        warn: Says why there is none.

    Raises:
        SystemExit: There is no library for QZOO_TARGET.
    """
    asked = None if editable else os.environ.get("QZOO_TARGET")
    if asked and asked not in TARGETS:
        sys.exit(f"QZOO_TARGET is {asked!r}, but must be one of {', '.join(TARGETS)}.")
    machine = asked or this_machine()
    folder = Path(__file__).resolve().parent
    if not editable:
        folder = Path(tempfile.mkdtemp(prefix="qzoo-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    made = folder / library_name(machine)
    try:
        tag = build(made, machine, "-s")
    except BuildError as error:
        if asked:
            sys.exit(f"libqzoo was not built: {error}.")
        warn(f"libqzoo was not built ({error}); qzoo works without it, on other runtimes.")
        return
    if not editable:
        build_data["force_include"][str(made)] = f"qzoo/libqzoo/{made.name}"
    build_data["pure_python"] = False
    build_data["tag"] = f"py3-none-{tag}"


def main() -> int:
    """Builds the library beside this file."""
    machine = this_machine()
    made = Path(__file__).resolve().with_name(library_name(machine))
    try:
        build(made, machine)
    except BuildError as error:
        print(f"libqzoo was not built: {error}.", file=sys.stderr)
        return 2
    print(f"{made}: {made.stat().st_size / 1024:.0f} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
