"""Trains a float model of the zoo, ready for quantization.

python references/train.py --data digits --model shufflenet_v2_x0_5 --output-dir runs/digits
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
import engine
import torch
from torch import nn
from torch.utils.data import DataLoader

from qzoo.artifact.native import model_info
from qzoo.errors import ArgumentError
from qzoo.evaluate import evaluate
from qzoo.registry import get_entry

#: Options that change the result, so that a resumed run must have the same.
SETTINGS = (
    "data", "data_path", "model", "weights", "batch_size", "lr", "momentum", "weight_decay",
    "lr_scheduler", "lr_step_size", "lr_gamma", "label_smoothing", "augment", "train_crop_size",
    "val_resize_size", "val_crop_size", "seed",
)  # fmt: skip
POSITIVE = click.IntRange(min=1)


@click.command(cls=engine.Command, context_settings={"show_default": True})
@click.option("--data", type=click.Choice(["digits"]), help="A data set that needs no download.")
@click.option("--data-path", help="A folder with train/CLASS/* and val/CLASS/*.")
@click.option("--model", required=True, help="A model of the zoo; `qzoo list` shows them.")
@click.option("--weights", help="torchvision's float weights to start from, such as DEFAULT.")
@click.option("--epochs", type=POSITIVE, default=90)
@click.option("-b", "--batch-size", type=POSITIVE, default=32)
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), default=0.1)
@click.option("--momentum", type=click.FloatRange(0, 1, max_open=True), default=0.9)
@click.option("--weight-decay", type=click.FloatRange(min=0), default=1e-4)
@click.option("--lr-scheduler", type=click.Choice(["cosine", "step"]), default="step")
@click.option("--lr-step-size", type=POSITIVE, default=30, help="Epochs between steps.")
@click.option("--lr-gamma", type=click.FloatRange(0, 1), default=0.1, help="Factor of a step.")
@click.option("--label-smoothing", type=click.FloatRange(0, 1, max_open=True), default=0.0)
@click.option("--augment", type=click.Choice(["none", "affine", "crop"]), help="By the data.")
@click.option("--train-crop-size", type=POSITIVE, help="Pixels; by the data.")
@click.option("--val-resize-size", type=POSITIVE, help="Pixels; by the data.")
@click.option("--val-crop-size", type=POSITIVE, help="Pixels; the training crop's.")
@click.option("--seed", type=click.IntRange(min=0), default=0)
@click.option("--threads", type=POSITIVE, help="CPU threads; all cores.")
@click.option("--output-dir", required=True, help="Where checkpoints, weights and the log go.")
@click.option("--resume", help="Goes on from a checkpoint.pth of the same run.")
def main(**options: Any) -> None:
    """Trains a float model and writes model.safetensors, checkpoint.pth and log.csv.

    The same options, seed and thread count give the same weights on the same machine, whether or
    not the run was resumed. The last epoch's weights are kept: the held-out split is measured for
    the log, never chosen by.
    """
    if options["threads"]:
        torch.set_num_threads(options["threads"])
    torch.manual_seed(options["seed"])
    data = engine.open_data(options["data"], options["data_path"])
    get_entry(options["model"])
    size = options["train_crop_size"] or data.size
    preset = data.preset(options["val_crop_size"] or size, options["val_resize_size"])
    engine.check_size(options["model"], min(size, preset.crop_size[0]))
    augment = options["augment"] or data.augment
    train_set = data.split("train", engine.train_transforms(augment, size, preset))
    test_set = data.split("test", preset)
    if options["batch_size"] > len(train_set):
        raise ArgumentError(
            f"--batch-size {options['batch_size']} is larger than the training split, which has "
            f"{len(train_set)} images."
        )
    loader = DataLoader(train_set, options["batch_size"], shuffle=True, drop_last=True)
    model = engine.float_model(options["model"], options["weights"], len(data.classes))
    optimizer = torch.optim.SGD(
        model.parameters(),
        options["lr"],
        momentum=options["momentum"],
        weight_decay=options["weight_decay"],
    )
    scheduler = _scheduler(optimizer, options)
    criterion = nn.CrossEntropyLoss(label_smoothing=options["label_smoothing"])
    output = Path(options["output_dir"])
    output.mkdir(parents=True, exist_ok=True)

    settings = {name: options[name] for name in SETTINGS}
    if options["lr_scheduler"] == "cosine":
        settings["epochs"] = options["epochs"]
    log: list[dict[str, float]] = []
    if options["resume"]:
        state = engine.load_checkpoint(Path(options["resume"]), settings)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        torch.set_rng_state(state["rng"])
        log = state["log"]

    for epoch in range(len(log), options["epochs"]):
        start, lr = time.perf_counter(), optimizer.param_groups[0]["lr"]
        title = f"epoch {epoch + 1}/{options['epochs']}"
        loss, train_top1 = engine.train_epoch(model, loader, criterion, optimizer, title)
        scheduler.step()
        metrics = evaluate(model, test_set)
        row = {"epoch": epoch + 1, "lr": lr, "loss": loss, "train_top1": train_top1}
        seconds = round(time.perf_counter() - start, 2)
        log.append({**row, "test_top1": metrics.top1, "seconds": seconds})
        state = {
            "settings": settings,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "rng": torch.get_rng_state(),
            "log": log,
        }
        engine.save_checkpoint(output / "checkpoint.pth", state)
        engine.write_csv(output / "log.csv", log)
        click.echo(
            f"{title}: lr {lr:.4f}, loss {loss:.4f}, train {train_top1:.2f} %, "
            f"test {metrics.top1:.2f} %, {seconds:.1f} s"
        )

    metrics = evaluate(model, test_set)
    command = engine.command_line("train.py")
    engine.save_float(
        model,
        output / "model.safetensors",
        classes=data.classes,
        transforms=preset.to_dict(),
        recipe={"train": command, "seed": options["seed"], "threads": torch.get_num_threads()},
        metrics={data.held_out: metrics.to_dict()},
    )
    click.echo(f"{model_info(model).architecture}: {metrics}; wrote {output / 'model.safetensors'}")


def _scheduler(optimizer: Any, options: dict[str, Any]) -> torch.optim.lr_scheduler.LRScheduler:
    if options["lr_scheduler"] == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options["epochs"])
    return torch.optim.lr_scheduler.StepLR(optimizer, options["lr_step_size"], options["lr_gamma"])


if __name__ == "__main__":
    main()
