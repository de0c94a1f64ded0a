"""Makes the wheels of a release: of qzoo and qzoo-lite, each for every kind of machine.

    pip install build hatchling ziglang
    python packaging/wheels.py --out dist

Any machine makes all of them: the package ziglang compiles the C library for the others, too.
"""

from __future__ import annotations

import argparse
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECTS = (ROOT, ROOT / "packaging" / "lite")
#: The kinds of machine, by the names in qzoo/libqzoo/build.py.
TARGETS = tuple(runpy.run_path(str(ROOT / "qzoo" / "libqzoo" / "build.py"))["TARGETS"])
RELEASED = ("linux-x86_64", "linux-aarch64", "macos-arm64", "windows-x86_64")


def make(target: str, out: Path, cache: str) -> None:
    """Makes the wheels for one kind of machine.

    Args:
        target: The kind.
        out: The folder for the wheels.
        cache: A folder for what ziglang compiles, so that it does so once.

    Raises:
        subprocess.CalledProcessError: A wheel could not be made; the reason was printed.
    """
    environment = {**os.environ, "QZOO_TARGET": target, "ZIG_GLOBAL_CACHE_DIR": cache}
    # The small distribution's local cache is the other's.
    environment["ZIG_LOCAL_CACHE_DIR"] = cache
    environment.pop("QZOO_CC", None)  # would make a wheel for this machine alone
    for project in PROJECTS:
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
        subprocess.run([*command, "--outdir", str(out), str(project)], check=True, env=environment)


def main() -> int:
    """Makes the wheels that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("dist"), help="folder for the wheels")
    parser.add_argument(
        "--targets", nargs="+", choices=TARGETS, default=RELEASED, help="kinds of machine"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qzoo-") as cache:
        for target in arguments.targets:
            try:
                make(target, arguments.out, cache)
            except subprocess.CalledProcessError as error:
                return error.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
