"""CPU cycles that calls take, where Linux counts them: virtual machines mostly have no counter."""

from __future__ import annotations

import ctypes
import os
import platform
import statistics
from collections.abc import Callable

#: Of perf_event_open(2): numbers of the call, kinds of counters, and bits of the attributes.
_CALL = {"x86_64": 298, "aarch64": 241}
HARDWARE_CYCLES, TASK_CLOCK = (0, 0), (1, 1)
_INHERIT, _EXCLUDE_KERNEL = 1 << 1, 1 << 5


class Counter:
    """Counts what the calling thread does from now on, and the threads that it starts.

    Args:
        kind: What to count, as (type, config) of perf_event_open.

    Attributes:
        missing: Why nothing is counted; empty where it is.
    """

    def __init__(self, kind: tuple[int, int] = HARDWARE_CYCLES) -> None:
        self._file, self.missing = -1, ""
        call = _CALL.get(platform.machine()) if platform.system() == "Linux" else None
        if call is None:
            self.missing = "this system has no perf_event_open"
            return
        words = (ctypes.c_uint64 * 16)(kind[0] | 128 << 32, kind[1])
        words[5] = _INHERIT | _EXCLUDE_KERNEL
        syscall = ctypes.CDLL(None, use_errno=True).syscall
        self._file = syscall(call, words, 0, -1, -1, 0)
        if self._file < 0:
            self.missing = f"perf_event_open: {os.strerror(ctypes.get_errno())}"

    def read(self) -> int | None:
        """Returns the count so far, or None where nothing is counted."""
        return None if self._file < 0 else int.from_bytes(os.read(self._file, 8), "little")

    def per_call(self, call: Callable[[], object], calls: int = 5) -> float | None:
        """Returns the median of some calls, or None where nothing is counted."""
        counts = []
        for _ in range(calls):
            before = self.read()
            call()
            after = self.read()
            if before is None or after is None:
                return None
            counts.append(after - before)
        return statistics.median(counts)

    def close(self) -> None:
        """Stops counting."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
