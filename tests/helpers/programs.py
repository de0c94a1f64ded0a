"""Programs in C that tests compile, with the compiler that libqzoo is built with."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest

from qzoo.libqzoo.binding import libqzoo_files
from qzoo.libqzoo.build import FLAGS, BuildError, compiler, sources, this_machine


def program(
    target: Path,
    source: Path,
    *flags: str,
    command: Sequence[str] = (),
    library: Literal["none", "built", "sources"] = "none",
) -> Path:
    """Compiles a C file, skipping the test where there is no compiler.

    Args:
        target: The file to write.
        source: The C file.
        *flags: Further flags.
        command: The compiler; that of libqzoo's build where none is given.
        library: What of libqzoo it needs: the one that was built (where there is none, and for a
            compiler of its own, the sources), or its sources, with all that is not exported.

    Returns:
        `target`.
    """
    needed: list[Path] = []
    if library != "none":
        built = [] if command or library == "sources" else libqzoo_files()
        needed = built or sorted((sources() / "src").glob("*.c"))
    if not command:
        try:
            command, _ = compiler(this_machine())
        except BuildError as error:
            pytest.skip(f"needs a C compiler: {error}")
    files = [source, *needed]
    more = [f"-I{sources()}", f"-I{sources() / 'include'}", "-pthread", "-O1", *flags]
    # ziglang's own cache would stay behind; this one goes with all temporary folders of the tests.
    cache = str(target.parent.parent / "ziglang")
    caches = {"ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache}
    done = subprocess.run(
        [*command, *FLAGS, *more, *map(str, files), "-o", str(target), "-lm"],
        env={**os.environ, **caches},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return target
