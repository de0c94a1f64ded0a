"""Groups of processes that compute together, forked from one that has imported PyTorch."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist


def run_groups(work: Callable[[int, int], None], folder: Path, *worlds: int) -> None:
    """Calls `work(rank, world)` in every process of groups of these sizes, then ends this one.

    Args:
        work: What every process does; it is in its group already.
        folder: Where the processes of a group find each other.
        *worlds: Sizes of the groups; one process alone is in none.
    """
    torch.set_num_threads(1)
    children = []
    for rank, world in [(rank, size) for size in worlds for rank in range(size)]:
        pid = os.fork()
        if not pid:
            if world > 1:
                store = dist.FileStore(str(folder / f"store-{world}"), world)
                dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
            work(rank, world)
            os._exit(0)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    sys.exit(max(map(abs, codes)))
