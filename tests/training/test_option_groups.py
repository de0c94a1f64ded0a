"""The groups of options: one place for defaults and ranges, and settings that old runs have."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from qzoo import training
from qzoo._core.option_types import Number, Whole
from qzoo.cli.finetune import finetune
from qzoo.errors import ArgumentError
from qzoo.training.checkpoint import same
from qzoo.training.groups import Options
from qzoo.training.options import OPTIMIZERS, QatOptions, TrainOptions, TransferOptions

REFERENCES = Path(__file__).parent.parent.parent / "references"

#: What train.py wrote into its checkpoints before options were dataclasses.
TRAIN = {
    "data": "digits", "data_path": None, "augment": None, "auto_augment": None,
    "random_erase": 0.0, "mixup_alpha": 0.0, "cutmix_alpha": 0.0, "ra_reps": 1,
    "train_crop_size": 32, "val_resize_size": None, "val_crop_size": None, "opt": "sgd",
    "lr": 0.02, "momentum": 0.9, "weight_decay": 0.0001, "norm_weight_decay": None,
    "lr_scheduler": "step", "lr_step_size": 30, "lr_gamma": 0.1, "lr_min": 0.0,
    "lr_warmup_epochs": 0, "lr_warmup_method": "linear", "lr_warmup_decay": None,
    "clip_grad_norm": None, "label_smoothing": 0.0, "model_ema": True, "model_ema_steps": 2,
    "model_ema_decay": 0.99998, "teacher": None, "teacher_share": 0.5, "teacher_temperature": 2.0,
    "amp": False, "amp_dtype": "bfloat16", "channels_last": False, "sync_bn": False, "seed": 0,
}  # fmt: skip
#: The same for the scripts, and the words that they were called with.
OLD_RUNS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "train": (
        ["--model", "resnet18", "--data", "digits", "--train-crop-size", "32", "--lr", "0.02",
         "--model-ema", "--model-ema-steps", "2"],
        {**TRAIN, "model": "resnet18", "weights": None},
    ),
    "qat": (
        ["--checkpoint", "m.safetensors", "--data", "digits", "--train-crop-size", "32",
         "--lr-scheduler", "StepLR", "--num-calibration-batches", "2", "--recipe", "fast",
         "--keep-float", "fc", "--keep-float", "layer1.*", "--teacher", "self"],
        {**TRAIN, "model_ema": False, "model_ema_steps": 32, "lr": 1e-4, "teacher": "self",
         "model": None, "weights": None, "checkpoint": "m.safetensors", "backend": None,
         "recipe": "fast", "num_calibration_batches": 2, "num_observer_update_epochs": 4,
         "num_batch_norm_update_epochs": 3, "batch_norm": "fold", "learn_ranges": False,
         "keep_float": ["fc", "layer1.*"], "flow": "eager"},
    ),
    "transfer": (
        ["--model", "resnet18", "--data", "digits", "--train-crop-size", "32"],
        {**TRAIN, "model_ema": False, "model_ema_steps": 32, "opt": "adamw", "lr": 0.0003,
         "weight_decay": 0.01, "lr_scheduler": "cosine", "label_smoothing": 0.1,
         "model": "resnet18", "weights": "DEFAULT", "checkpoint": None, "head_epochs": 1,
         "head_lr_factor": 10.0},
    ),
}  # fmt: skip
#: The groups that a script's options belong to.
GROUPS: dict[str, tuple[type[Options], ...]] = {
    "train": (TrainOptions, training.StartOptions),
    "qat": (TrainOptions, QatOptions, training.StartOptions),
    "transfer": (TransferOptions,),
}


def parsed(script: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> list[Options]:
    """Returns the groups of options that a reference script makes of its command line."""
    monkeypatch.syspath_prepend(str(REFERENCES))
    command: click.Command = importlib.import_module(script).main
    values = command.make_context(script, [*words, "--output-dir", "x"]).params
    return [group.of(values) for group in GROUPS[script]]


@pytest.mark.parametrize("script", OLD_RUNS)
def test_a_run_from_before_can_be_resumed(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words, old = OLD_RUNS[script]
    now: dict[str, Any] = {}
    for group in parsed(script, words, monkeypatch):
        now |= group.settings()
    assert all(same(old.get(name), value) for name, value in now.items()), "as load_checkpoint does"
    assert set(old) <= set(now), "nothing decisive is forgotten"


@pytest.mark.parametrize("script", OLD_RUNS)
def test_the_flags_are_the_fields(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--model", "resnet18"]
    overridden = {"model", "output_dir"} | {
        "train": set(),
        "qat": {"epochs", "lr", "lr_scheduler"},
        "transfer": set(training.TRANSFER_DEFAULTS),
    }[script]
    for group in parsed(script, words, monkeypatch):
        default = type(group)().values()
        changed = {name for name, value in group.values().items() if value != default[name]}
        assert changed <= overridden


def _inner(options: Options) -> Iterator[Options]:
    yield options
    for field in dataclasses.fields(options):
        if isinstance(value := getattr(options, field.name), Options):
            yield from _inner(value)


def _bad_values() -> Iterator[tuple[type[Options], str, Any]]:
    groups = {type(g) for o in (TransferOptions(), QatOptions()) for g in _inner(o)}
    for group in sorted(groups, key=lambda g: g.__name__):
        for field in dataclasses.fields(group):
            kind = field.metadata.get("type")
            if isinstance(kind, (Whole, Number)):
                bad = [float("nan"), -1, 10**400, "many"]
            elif isinstance(kind, click.Choice):
                bad = ["nothing like it"]
            else:
                bad = {False: ["yes", 1], (): ["fc", 5]}.get(field.default, [])
            if field.metadata and field.default is not None:
                bad.append(None)
            yield from ((group, field.name, value) for value in bad if value != field.default)


@pytest.mark.parametrize(("group", "name", "value"), list(_bad_values()), ids=lambda v: str(v)[:20])
def test_no_option_takes_a_bad_value(group: type[Options], name: str, value: Any) -> None:
    flag = "--" + name.replace("_", "-")
    with pytest.raises(ArgumentError, match=flag):
        group(**{name: value})


def test_groups_do_not_change() -> None:
    options = TrainOptions()
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.schedule.lr = 1.0  # type: ignore[misc]
    changed = options.changed(lr=1, batch_size="8", opt="SGD", data_path=Path("photos"))
    assert (changed.schedule.lr, changed.data.batch_size) == (1.0, 8)
    assert (changed.optimizer.opt, changed.data.data_path) == ("sgd", "photos")
    assert options == TrainOptions()
    with pytest.raises(TypeError, match="learning_rate"):
        options.changed(learning_rate=1)
    with pytest.raises(ArgumentError, match="--lr-warmup-epochs 5 should be less than --epochs 5"):
        options.changed(epochs=5, lr_warmup_epochs=5)
    assert [options.changed(opt=name).optimizer.opt for name in OPTIMIZERS] == list(OPTIMIZERS)


def test_finetune_shows_the_defaults_of_transfer_learning() -> None:
    wanted = TransferOptions().changed(**training.TRANSFER_DEFAULTS).values()
    shown = finetune.make_context("finetune", ["digits"]).params
    # Of these, the command makes other values when it runs.
    for name in set(wanted) & set(shown) - {"model", "weights", "resume"}:
        assert shown[name] == wanted[name], name
