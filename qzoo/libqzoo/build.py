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
from typing import Any

#: One floating-point operation must stay one, whatever the processor could do at once.
FLAGS = (
    "-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-fPIC",
    "-Wall", "-Wextra",
)  # fmt: skip
#: Systems by Python's name, as the compiler calls them; an old glibc, so that all newer ones do.
_SYSTEMS = {"Linux": "linux-gnu.2.17", "Darwin": "macos", "Windows": "windows-gnu"}
_MACHINES = {"x86_64": "x86_64", "amd64": "x86_64", "arm64": "aarch64", "aarch64": "aarch64"}
_ENDINGS = {"Darwin": "dylib", "Windows": "dll"}


class BuildError(Exception):
    """Why there is no library: one sentence without a full stop."""


def sources() -> Path:
    """Returns the folder of the C sources, beside the package in a checkout or an sdist."""
    return Path(__file__).resolve().parents[2] / "libqzoo"


def library_name() -> str:
    """Returns how the library's file is called on this system."""
    return f"_qzoo.{_ENDINGS.get(platform.system(), 'so')}"


def compiler() -> list[str]:
    """Returns the command that compiles: QZOO_CC, else the package ziglang's, else the system's.

    Raises:
        BuildError: There is none.
    """
    if own := os.environ.get("QZOO_CC"):
        return shlex.split(own)
    if importlib.util.find_spec("ziglang") is not None:
        machine = _MACHINES.get(platform.machine().lower())
        system = _SYSTEMS.get(platform.system())
        if machine is None or system is None:
            raise BuildError(f"{platform.system()} on {platform.machine()} is not known to it")
        # Without a target it would compile for the very processor that it runs on.
        return [sys.executable, "-m", "ziglang", "cc", "-target", f"{machine}-{system}"]
    if (found := shutil.which("cc")) is not None:
        return [found]
    raise BuildError("there is no C compiler: install ziglang, or name one in QZOO_CC")


def build(target: Path, *more: str) -> None:
    """Compiles the library.

    Args:
        target: The file to write, whole or not at all.
        *more: Further flags.

    Raises:
        BuildError: There is no compiler, or it fails.
    """
    files = [str(path) for path in sorted((sources() / "src").glob("*.c"))]
    with tempfile.TemporaryDirectory(prefix="qzoo-") as folder:
        made = Path(folder) / target.name
        libraries = [] if platform.system() == "Windows" else ["-lm"]
        command = [*compiler(), *FLAGS, *more, "-shared", *files, "-o", str(made), *libraries]
        # The compiler's own cache would stay behind.
        environment = {"ZIG_GLOBAL_CACHE_DIR": folder, "ZIG_LOCAL_CACHE_DIR": folder}
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, env={**os.environ, **environment}
            )
        except OSError as error:
            raise BuildError(f"{command[0]} cannot be run ({error})") from None
        if done.returncode or not made.is_file():
            last = (done.stderr.strip() or "no output").splitlines()[-1][:300]
            raise BuildError(f"{shlex.join(command[:4])} failed: {last}")
        beside = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copyfile(made, beside)
        beside.replace(target)


def into_wheel(build_data: dict[str, Any], editable: bool, warn: Callable[[str], None]) -> None:
    """Adds the library to what hatchling packs; without a compiler, the package does without.

    Args:
        build_data: Hatchling's: which files a wheel has besides, and how it is called.
        editable: Whether the library goes beside this file instead.
        warn: Says why there is none.
    """
    folder = Path(__file__).resolve().parent
    if not editable:
        folder = Path(tempfile.mkdtemp(prefix="qzoo-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    target = folder / library_name()
    try:
        build(target, "-s")
    except BuildError as error:
        warn(f"libqzoo was not built ({error}); qzoo works without it, on other runtimes.")
        return
    if not editable:
        build_data["force_include"][str(target)] = f"qzoo/libqzoo/{target.name}"
    build_data["pure_python"] = False
    system = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    build_data["tag"] = f"py3-none-{system}"


def main() -> int:
    """Builds the library beside this file."""
    target = Path(__file__).resolve().with_name(library_name())
    try:
        build(target)
    except BuildError as error:
        print(f"libqzoo was not built: {error}.", file=sys.stderr)
        return 2
    print(f"{target}: {target.stat().st_size / 1024:.0f} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
