"""What the reference scripts share: data, one training epoch, files, logs, error reports."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import safetensors
import torch
from safetensors.torch import save as to_safetensors
from torch import nn
from tqdm import tqdm

from qzoo.artifact.format import ModelInfo, write_atomically
from qzoo.artifact.native import attach_info, model_info, package_versions
from qzoo.errors import ArgumentError, ArtifactError, QzooError
from qzoo.registry import get_entry, get_model
from qzoo.weights import read_metadata

#: The header key under which a file of float weights says what they are.
_HEADER = "qzoo-float"


class Failure(click.ClickException):
    """What ends a script on purpose: one sentence on stderr."""

    exit_code = 2


class Command(click.Command):
    """A command whose expected errors are one sentence on stderr and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except (QzooError, OSError) as error:
            raise Failure(" ".join(str(error).split())) from None


def command_line(script: str) -> str:
    """Returns the command that is running, as one would type it at the repository's root."""
    return f"python references/{script} {shlex.join(sys.argv[1:])}"


def environment() -> dict[str, str | int]:
    """Returns what a figure may depend on besides its command; the columns of results files."""
    return {
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        **package_versions(),
    }


def check_size(model: str, size: int) -> None:
    """Checks that a model takes square pictures of this side.

    Raises:
        ArgumentError: They are too small for it.
    """
    least = max(read_metadata(get_entry(model).name)["min_size"])
    if size < least:
        raise ArgumentError(f"{model} takes pictures of at least {least} pixels, not {size}.")


def stratified(targets: Sequence[int], count: int, seed: int) -> list[int]:
    """Chooses images so that every class has its share, in an order that alternates classes.

    Args:
        targets: The label of every image.
        count: How many to choose; all of them, shuffled, where there are no more.
        seed: Seed of a generator of its own.

    Returns:
        Indices into `targets`.
    """
    generator = torch.Generator().manual_seed(seed)
    ranked = []
    seen: dict[int, int] = {}
    for index in torch.randperm(len(targets), generator=generator).tolist():
        label = targets[index]
        seen[label] = seen.get(label, 0) + 1
        ranked.append((seen[label], label, index))
    return [index for _, _, index in sorted(ranked)[:count]]


# Training


def train_epoch(
    model: nn.Module,
    loader: Any,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    title: str,
    *,
    amp: bool = False,
    channels_last: bool = False,
) -> tuple[float, float]:
    """Trains for one pass over the data.

    Args:
        model: The model, in the memory format that `channels_last` says.
        loader: Batches of images, float32 [N, 3, H, W], and labels; has a length.
        criterion: Loss of logits and labels.
        optimizer: Changes the model's parameters.
        title: What the progress bar is called.
        amp: Whether to compute in bfloat16 where `torch.autocast` finds it safe.
        channels_last: Whether to give images in PyTorch's channels-last memory format.

    Returns:
        Mean loss, and top-1 accuracy in percent while training.

    Raises:
        ArgumentError: The loss is no longer a number.
    """
    model.train()
    total, right, n = 0.0, 0, 0
    batches = tqdm(loader, desc=title, unit="batch", leave=False)
    for images, labels in batches:
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            logits = model(images)
        loss = criterion(logits.float(), labels)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ArgumentError(
                f"The loss became {value} in {title}: training diverged. Lower --lr; the last good "
                "checkpoint is kept."
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += value * len(labels)
        right += int((logits.argmax(1) == labels).sum())
        n += len(labels)
        batches.set_postfix(loss=f"{total / n:.3f}")
    return total / n, 100 * right / n


# Files


def float_model(name: str, weights: str | None, classes: int) -> nn.Module:
    """Builds a float quantizable model with a head for this many classes.

    Raises:
        UnknownNameError: An unknown model or weights.
        DownloadError: The weights could not be fetched.
    """
    # The auxiliary classifiers of 2015 are of no use with batch norm, and int8 models drop them.
    extra = {"aux_logits": False} if get_entry(name).aux else {}
    return get_model(name, weights=weights, num_classes=classes, **extra)


def save_float(model: nn.Module, path: Path, **info: Any) -> None:
    """Writes float weights with a description of the model, whole or not at all.

    Raises:
        ArtifactError: The file cannot be written.
    """
    known = dataclasses.asdict(dataclasses.replace(model_info(model), **info))
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(path, to_safetensors(tensors, metadata={_HEADER: json.dumps(known)}))


def load_float(path: Path) -> nn.Module:
    """Builds the float model that `save_float` wrote, in eval mode; runs no code from the file.

    Raises:
        ArtifactError: The file is missing, damaged, or not of this kind.
    """
    if not path.is_file():
        raise ArtifactError(f"There is no checkpoint {path}; references/train.py writes one.")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            info = ModelInfo(**json.loads((file.metadata() or {})[_HEADER]))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        model = get_model(info.architecture, **info.builder_kwargs)
        model.load_state_dict(state)
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ArtifactError(
            f"{path} is not a float checkpoint of references/train.py, or is damaged "
            f"({str(error)[:200]})."
        ) from None
    return attach_info(model, info).eval()


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Writes all that a resumed run needs, whole or not at all.

    Raises:
        ArtifactError: The file cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    write_atomically(path, buffer.getvalue())


def load_checkpoint(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Reads what `save_checkpoint` wrote; tensors and plain values only, no code.

    Args:
        path: The file.
        settings: Options that must be those of the interrupted run.

    Raises:
        ArtifactError: The file is missing, damaged, or of a run with other settings.
    """
    if not path.is_file():
        raise ArtifactError(f"There is no checkpoint {path} to resume from.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        stored = state["settings"]
    except Exception as error:  # torch.load fails in many ways on a file that is none of its own
        reason = str(error).partition("\n")[0][:120]
        raise ArtifactError(
            f"{path} is not a checkpoint of references/train.py, or is damaged ({reason})."
        ) from None
    for name, value in settings.items():
        if stored.get(name) != value:
            raise ArtifactError(
                f"{path} belongs to a run with {name}={stored.get(name)!r}, not {value!r}: resume "
                "with the same options, or start anew without --resume."
            )
    return state


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows with the columns of the first one, whole or not at all.

    Raises:
        ArtifactError: The file cannot be written.
    """
    rows = list(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.getvalue().encode())


def put_row(path: Path, row: Mapping[str, Any], key: Sequence[str]) -> None:
    """Writes a row into a CSV file, in place of the one that agrees with it in `key`.

    Raises:
        ArtifactError: The file has other columns, or cannot be written.
    """
    rows: list[Mapping[str, Any]] = []
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if rows and list(rows[0]) != list(row):
            raise ArtifactError(f"{path} has other columns than the row to add; move it away.")
    rows = [r for r in rows if any(str(r[k]) != str(row[k]) for k in key)]
    write_csv(path, sorted([*rows, row], key=lambda r: [str(r[k]) for k in key]))


def mib(path: Path) -> float:
    """Returns a file's size in MiB, rounded to three digits as metadata holds it."""
    return round(path.stat().st_size / 2**20, 3)
