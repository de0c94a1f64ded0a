"""Trains a float model of the zoo, ready for quantization.

python references/train.py --data digits --model shufflenet_v2_x0_5 --output-dir runs/digits
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import click
import engine
import sources
import torch
from batches import MemoryBatches
from torch import nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    SequentialLR,
    StepLR,
)
from torch.utils.data import DataLoader

from qzoo.artifact.native import model_info
from qzoo.errors import ArgumentError
from qzoo.evaluate import evaluate
from qzoo.registry import get_entry
from qzoo.transforms import ImageClassification

#: Options that change the result, so that a resumed run must have the same.
SETTINGS = (
    "data", "data_path", "model", "weights", "batch_size", "lr", "momentum", "weight_decay",
    "lr_scheduler", "lr_step_size", "lr_gamma", "lr_warmup_epochs", "label_smoothing", "augment",
    "train_crop_size", "val_resize_size", "val_crop_size", "amp", "channels_last", "seed",
)  # fmt: skip
POSITIVE = click.IntRange(min=1)


@click.command(cls=engine.Command, context_settings={"show_default": True})
@click.option("--data", type=click.Choice(sources.NAMED_DATA), help="Data that need no download.")
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
@click.option("--lr-warmup-epochs", type=click.IntRange(min=0), default=0, help="Linear rise.")
@click.option("--label-smoothing", type=click.FloatRange(0, 1, max_open=True), default=0.0)
@click.option(
    "--augment", type=click.Choice(["none", "affine", "turn", "crop"]), help="By the data."
)
@click.option("--train-crop-size", type=POSITIVE, help="Pixels; by the data.")
@click.option("--val-resize-size", type=POSITIVE, help="Pixels; by the data.")
@click.option("--val-crop-size", type=POSITIVE, help="Pixels; the training crop's.")
@click.option("--amp", is_flag=True, help="Compute in bfloat16 where that is safe.")
@click.option("--channels-last", is_flag=True, help="Memory format of images and weights.")
@click.option("--eval-every", type=POSITIVE, default=1, help="Epochs between measurements.")
@click.option("--seed", type=click.IntRange(min=0), default=0)
@click.option("--threads", type=POSITIVE, help="CPU threads; all cores.")
@click.option("--output-dir", required=True, help="Where checkpoints, weights and the log go.")
@click.option("--results", help="A CSV file that gets a row with the figures.")
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
    data = sources.open_data(options["data"], options["data_path"])
    get_entry(options["model"])
    size = options["train_crop_size"] or data.size
    preset = data.preset(options["val_crop_size"] or size, options["val_resize_size"])
    engine.check_size(options["model"], min(size, preset.crop_size[0]))
    augment = options["augment"] or data.augment
    train_set = data.split("train", sources.train_transforms(augment, size, preset))
    test_set = data.split("test", preset)
    if options["batch_size"] > len(train_set):
        raise ArgumentError(
            f"--batch-size {options['batch_size']} is larger than the training split, which has "
            f"{len(train_set)} images."
        )
    loader = _loader(data, train_set, options["batch_size"], augment, preset)
    model = engine.float_model(options["model"], options["weights"], len(data.classes))
    if options["channels_last"]:
        model.to(memory_format=torch.channels_last)
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
    log: list[dict[str, float | str]] = []
    speed = {"amp": options["amp"], "channels_last": options["channels_last"]}
    metrics = None
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
        loss, train_top1 = engine.train_epoch(model, loader, criterion, optimizer, title, **speed)
        scheduler.step()
        last = epoch + 1 == options["epochs"]
        metrics = None
        if last or (epoch + 1) % options["eval_every"] == 0:
            metrics = evaluate(model, test_set)
        row = {"epoch": epoch + 1, "lr": lr, "loss": loss, "train_top1": train_top1}
        seconds = round(time.perf_counter() - start, 2)
        log.append({**row, "test_top1": metrics.top1 if metrics else "", "seconds": seconds})
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
            + (f"test {metrics.top1:.2f} %, " if metrics else "")
            + f"{seconds:.1f} s"
        )

    metrics = metrics or evaluate(model, test_set)
    command, path = engine.command_line("train.py"), output / "model.safetensors"
    engine.save_float(
        model,
        path,
        classes=data.classes,
        transforms=preset.to_dict(),
        recipe={"train": command, "seed": options["seed"], "threads": torch.get_num_threads()},
        metrics={data.held_out: metrics.to_dict()},
    )
    name = model_info(model).architecture
    click.echo(f"{name}: {metrics}; wrote {path}")
    if options["results"]:
        row = {
            "model": name,
            "data": data.name,
            "float_top1": round(metrics.top1, 3),
            "float_top1_low": round(metrics.interval()[0], 3),
            "float_top1_high": round(metrics.interval()[1], 3),
            "n_test": metrics.n,
            "input_size": size,
            "epochs": options["epochs"],
            "seed": options["seed"],
            "seconds": round(sum(float(line["seconds"]) for line in log)),
            **engine.environment(),
            "command": command,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        engine.put_row(Path(options["results"]), row, ("model", "data", "seed"))


def _loader(
    data: sources.Data, train_set: Any, batch_size: int, augment: str, preset: ImageClassification
) -> Any:
    size = preset.crop_size[0]
    if data.name == "fractals" and size == preset.resize_size[0] == data.size:
        if augment in ("none", "turn"):
            return MemoryBatches(train_set, batch_size, preset, augment == "turn")
    return DataLoader(train_set, batch_size, shuffle=True, drop_last=True)


def _scheduler(optimizer: Any, options: dict[str, Any]) -> LRScheduler:
    warmup = options["lr_warmup_epochs"]
    if warmup >= options["epochs"]:
        raise ArgumentError(
            f"--lr-warmup-epochs {warmup} should be less than --epochs {options['epochs']}."
        )
    after: LRScheduler
    if options["lr_scheduler"] == "cosine":
        after = CosineAnnealingLR(optimizer, options["epochs"] - warmup)
    else:
        after = StepLR(optimizer, options["lr_step_size"], options["lr_gamma"])
    if not warmup:
        return after
    rise = LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup)
    return SequentialLR(optimizer, [rise, after], [warmup])


if __name__ == "__main__":
    main()
