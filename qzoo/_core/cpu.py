"""Facts about this machine's CPU."""

from __future__ import annotations

import functools
import platform
from pathlib import Path


@functools.cache
def _facts() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""  # not Linux


def cpu_name() -> str:
    """Returns the CPU's name, or what the system says of it."""
    for line in _facts().splitlines():
        if line.startswith(("model name", "CPU part")):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def has_vnni() -> bool:
    """Whether this CPU multiplies 8-bit integers without saturating 16-bit sums.

    True as well for other architectures than x86, which have no such instructions to avoid; False
    where the system does not tell.
    """
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    flags = next((line for line in _facts().splitlines() if line.startswith("flags")), "").split()
    return not x86 or "avx512_vnni" in flags or "avx_vnni" in flags
