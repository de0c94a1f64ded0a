"""Quantizes in several processes at once; for test_ranks.py.

python -m tests.helpers.spreading FOLDER WORLD

Writes FOLDER/WORLD-RANK.safetensors for every process, and FOLDER/observers-WORLD.pt.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

import qzoo
from qzoo.native.model import from_native
from qzoo.quantize import OBSERVERS, make_observer
from qzoo.quantize.steps.ranks import all_reduce_ranges, spread_calibration
from tests.helpers.groups import run_groups


def batches() -> list[torch.Tensor]:
    """Five batches, each wider than the one before, to the left and to the right."""
    generator = torch.Generator().manual_seed(0)
    stretch = (torch.arange(5) + 1.0).tolist()
    return [
        s * torch.randn(4, 3, 40, 40, generator=generator).clamp(-3, 3) + s / 3 for s in stretch
    ]


def observe(rank: int, world: int) -> dict[str, list[torch.Tensor]]:
    """Returns range and counts of observers of every kind that took turns at the batches."""
    observers = {name: make_observer(name) for name in OBSERVERS}
    for name, observer in observers.items():
        for batch in batches()[rank::world]:
            observer.update(batch.relu() if name == "entropy" else batch)
    merged = all_reduce_ranges(observers)
    return {
        name: [*seen.range(), getattr(seen, "counts", torch.zeros(0))]
        for name, seen in merged.items()
    }


def quantize() -> bytes:
    """Returns the artifact that processes make together, or one alone."""
    torch.manual_seed(0)
    model = qzoo.mobilenet_v2(num_classes=10, width_mult=0.25).eval()
    with spread_calibration():
        int8 = qzoo.quantize.ptq(
            model, batches(), recipe="fast", backend="onednn", batch_size=4, progress=False
        )
    return from_native(int8).to_bytes()


def main() -> None:
    """Starts the processes and waits for them."""
    folder, size = Path(sys.argv[1]), int(sys.argv[2])

    def work(rank: int, world: int) -> None:
        found = observe(rank, world)
        if rank == 0:
            torch.save(found, folder / f"observers-{world}.pt")
        (folder / f"{world}-{rank}.safetensors").write_bytes(quantize())
        if world > 1:
            dist.destroy_process_group()

    run_groups(work, folder, size)


if __name__ == "__main__":
    main()
