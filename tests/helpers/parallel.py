"""Trains in double precision in two processes and in one; for test_distributed.py.

python -m tests.helpers.parallel PICTURES FOLDER

Writes FOLDER/1.pt and FOLDER/2.pt: the loss of every step, and the weights and buffers.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qzoo import training
from qzoo.training import sources
from qzoo.training.distributed import data_parallel, synchronize_batch_norm
from tests.helpers.groups import run_groups

BATCH = 16


def train(pictures: str, rank: int, world: int) -> dict[str, Any]:
    """Takes a few steps and returns what came out."""
    ranks = training.Ranks(torch.device("cpu"), rank, world)
    data = sources.open_data(None, pictures)
    images = data.split("train", sources.train_transforms("crop", 32, data.preset(32)))
    order = training.Order(len(images), BATCH // world, 3, rank=rank, world=world)
    torch.manual_seed(rank)  # as in scripts: the first process's weights are everyone's
    model = training.float_model("resnet18", None, len(data.classes)).double().train()
    model = synchronize_batch_norm(model, ranks)
    network = data_parallel(model, ranks)
    optimizer = torch.optim.SGD(model.parameters(), 0.002, momentum=0.9, weight_decay=1e-4)
    losses = []
    for epoch in range(2):
        for x, y in training.LoadedBatches(images, order).epoch(epoch):
            loss = nn.functional.cross_entropy(network(x.double()), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(ranks.total(loss.detach())) / world)
    ranks.share_buffers(model)
    return {"losses": losses, "state": model.state_dict()}


def main() -> None:
    """Starts the processes and waits for them."""
    pictures, folder = sys.argv[1], Path(sys.argv[2])

    def work(rank: int, world: int) -> None:
        found = train(pictures, rank, world)
        if rank == 0:
            torch.save(found, folder / f"{world}.pt")

    run_groups(work, folder, 1, 2)


if __name__ == "__main__":
    main()
