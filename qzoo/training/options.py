"""The options that training scripts share, called as torchvision's where it has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from .._core.option_types import MOST_SEED, MOST_THREADS, Number, Whole
from .optim import OPTIMIZERS, SCHEDULES
from .presets import PRESETS, PROCESSES, preset
from .script import tell
from .sources import AUGMENTATIONS, NAMED_DATA

F = TypeVar("F", bound=Callable[..., Any])

POSITIVE = Whole(1)
COUNT = Whole(0)
ABOVE_0 = Number(0, min_open=True)
NOT_BELOW_0 = Number(0)
SHARE = Number(0, 1)
PART = Number(0, 1, max_open=True)


def _apply_preset(ctx: click.Context, _: click.Parameter, name: str | None) -> str | None:
    if name is None or ctx.resilient_parsing:
        return name
    values = preset(name)
    own = {p.name for p in ctx.command.params}
    if foreign := sorted(set(values) - own):
        raise click.UsageError(
            f"--preset {name} sets --{foreign[0].replace('_', '-')}, which this script has not: it "
            "is a recipe of another one."
        )
    ctx.default_map = {**(ctx.default_map or {}), **values}
    tell(
        f"--preset {name}: torchvision ran {PROCESSES} processes with batches of "
        f"{values['batch_size']}; with fewer images per step lower --lr in proportion."
    )
    return name


def _schedule(ctx: click.Context, _: click.Parameter, name: str) -> str:
    return SCHEDULES[name]


Spec = tuple[tuple[str, ...], dict[str, Any]]


def _spec(*names: str, **settings: Any) -> Spec:
    return names, settings


#: Every shared option but the model's, in the order of --help.
SPECS: tuple[Spec, ...] = (
    _spec(
        "--preset",
        callback=_apply_preset,
        is_eager=True,
        expose_value=False,
        metavar="NAME",
        help=f"A published recipe; other options go before it: {', '.join(PRESETS)}.",
    ),
    # Data
    _spec("--data", type=click.Choice(NAMED_DATA), help="Data that need no download."),
    _spec("--data-path", help="A folder with train/CLASS/* and val/CLASS/*."),
    _spec("--augment", type=click.Choice(AUGMENTATIONS), help="By the data."),
    _spec(
        "--auto-augment",
        type=click.Choice(["imagenet", "ra", "ta_wide", "augmix"]),
        help="AutoAugment, RandAugment, TrivialAugment or AugMix on top.",
    ),
    _spec("--random-erase", type=SHARE, default=0.0, help="Probability to blank a rectangle."),
    _spec("--mixup-alpha", type=NOT_BELOW_0, default=0.0, help="0 for no mixup."),
    _spec("--cutmix-alpha", type=NOT_BELOW_0, default=0.0, help="0 for no CutMix."),
    _spec("--ra-reps", type=POSITIVE, default=1, help="Repeated augmentation: copies per epoch."),
    _spec("--train-crop-size", type=POSITIVE, help="Pixels; by the data."),
    _spec("--val-resize-size", type=POSITIVE, help="Pixels; by the data."),
    _spec("--val-crop-size", type=POSITIVE, help="Pixels; the training crop's."),
    _spec("-j", "--workers", type=COUNT, help="Processes that read pictures; by the data."),
    # Optimization
    _spec("--epochs", type=POSITIVE, default=90),
    _spec("--start-epoch", type=COUNT, default=0, help="Leaves out the epochs before it."),
    _spec("-b", "--batch-size", type=POSITIVE, default=32, help="Images per step and process."),
    _spec("--opt", type=click.Choice(OPTIMIZERS, case_sensitive=False), default="sgd"),
    _spec("--lr", type=ABOVE_0, default=0.1),
    _spec("--momentum", type=PART, default=0.9),
    _spec("--wd", "--weight-decay", "weight_decay", type=NOT_BELOW_0, default=1e-4),
    _spec("--norm-weight-decay", type=NOT_BELOW_0, help="Of batch norm; as the others."),
    _spec(
        "--lr-scheduler",
        type=click.Choice(list(SCHEDULES), case_sensitive=False),
        default="step",
        callback=_schedule,
    ),
    _spec("--lr-step-size", type=POSITIVE, default=30, help="Epochs between steps."),
    _spec("--lr-gamma", type=SHARE, default=0.1, help="Factor of a step."),
    _spec("--lr-min", type=NOT_BELOW_0, default=0.0, help="The end of a cosine schedule."),
    _spec("--lr-warmup-epochs", type=COUNT, default=0),
    _spec("--lr-warmup-method", type=click.Choice(["linear", "constant"]), default="linear"),
    _spec("--lr-warmup-decay", type=SHARE, help="First factor; 1 / (warmup epochs + 1)."),
    _spec("--clip-grad-norm", type=ABOVE_0, help="Longest gradient; no limit."),
    _spec("--label-smoothing", type=PART, default=0.0),
    _spec("--model-ema", is_flag=True, help="Average the weights and keep the average."),
    _spec("--model-ema-steps", type=POSITIVE, default=32, help="Steps between updates."),
    _spec("--model-ema-decay", type=SHARE, default=0.99998),
    _spec("--teacher", help="A model.safetensors to learn from as well; 'self': where QAT starts."),
    _spec("--teacher-share", type=SHARE, default=0.5, help="How much the teacher counts."),
    _spec("--teacher-temperature", type=ABOVE_0, default=2.0),
    # How to compute
    _spec("--device", help="cpu, cuda, ...; a GPU where there is one."),
    _spec("--amp", is_flag=True, help="Compute in 16 bits where that is safe."),
    _spec("--amp-dtype", type=click.Choice(["bfloat16", "float16"]), default="bfloat16"),
    _spec("--channels-last", is_flag=True, help="Memory format of images and weights."),
    _spec("--compile", is_flag=True, help="Train with torch.compile."),
    _spec("--sync-bn", is_flag=True, help="Batch norm over the batches of all processes."),
    _spec("--seed", type=Whole(0, MOST_SEED), default=0),
    _spec("--threads", type=Whole(1, MOST_THREADS), help="CPU threads; all cores."),
    _spec("--use-deterministic-algorithms", is_flag=True, help="Also on a GPU."),
    # Output
    _spec("--output-dir", required=True, help="Where checkpoints, weights and the log go."),
    _spec(
        "--resume",
        is_flag=False,
        flag_value="auto",
        help='A checkpoint.pth of the same run; alone or "auto": the folder\'s, if any.',
    ),
    _spec("--overwrite", is_flag=True, help="Replace the run that --output-dir holds."),
    _spec("--checkpoint-steps", type=POSITIVE, help="Checkpoints within epochs, too."),
    _spec("--eval-every", type=POSITIVE, default=1, help="Epochs between measurements."),
    _spec("--print-freq", type=POSITIVE, default=10, help="Steps between shown figures."),
    _spec("--tensorboard", is_flag=True, help="Write event files for TensorBoard."),
    _spec("--plot", is_flag=True, help="Draw curve.png."),
    _spec("--results", help="A CSV file that gets a row with the figures."),
    _spec("--test-only", is_flag=True, help="Only measure, from --weights or --resume."),
)

#: Options that change the weights, so that a resumed run must have the same.
DECISIVE = (
    "data", "data_path", "augment", "auto_augment", "random_erase", "mixup_alpha", "cutmix_alpha",
    "ra_reps", "train_crop_size", "val_resize_size", "val_crop_size", "opt", "lr", "momentum",
    "weight_decay", "norm_weight_decay", "lr_scheduler", "lr_step_size", "lr_gamma", "lr_min",
    "lr_warmup_epochs", "lr_warmup_method", "lr_warmup_decay", "clip_grad_norm",
    "label_smoothing", "model_ema", "model_ema_steps", "model_ema_decay", "teacher",
    "teacher_share", "teacher_temperature", "amp", "amp_dtype", "channels_last", "sync_bn", "seed",
)  # fmt: skip


def option_values(**values: Any) -> dict[str, Any]:
    """Returns what the shared options are where a user says nothing but these values.

    Raises:
        TypeError: There is no such option.
    """
    found: dict[str, Any] = {}
    for names, settings in SPECS:
        if settings.get("expose_value", True):
            key = next((n for n in names if n.isidentifier()), names[-1])
            key = key.lstrip("-").replace("-", "_")
            found[key] = settings.get("default", False if settings.get("is_flag") else None)
    if unknown := sorted(set(values) - set(found)):
        raise TypeError(f"There are no options {unknown}.")
    return {**found, **values}


def training_options(**defaults: Any) -> Callable[[F], F]:
    """Returns a decorator that gives a command all of `SPECS`.

    Args:
        defaults: Other default values than those of train.py, by name.

    Raises:
        TypeError: There is no such option.
    """
    specs = []
    for names, settings in SPECS:
        key = names[-1].lstrip("-").replace("-", "_")
        if key in defaults:
            settings = settings | {"default": defaults.pop(key)}
        specs.append((names, settings))
    if defaults:
        raise TypeError(f"There are no options {sorted(defaults)}.")

    def decorate(function: F) -> F:
        for names, settings in reversed(specs):
            function = click.option(*names, **settings)(function)
        return function

    return decorate
