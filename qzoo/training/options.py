"""The options of training, in groups: default values, ranges and help stand here alone.

The reference scripts take them as flags, called as torchvision's where it has them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from .._core.option_types import MOST_SEED, MOST_THREADS, Number, Whole
from ..backends import BACKENDS
from ..errors import ArgumentError
from ..quantize import RECIPES, qat
from .groups import F, Options, click_options, option
from .presets import PRESETS, PROCESSES, preset
from .script import tell
from .sources import AUGMENTATIONS, NAMED_DATA

POSITIVE = Whole(1)
COUNT = Whole(0)
ABOVE_0 = Number(0, min_open=True)
NOT_BELOW_0 = Number(0)
SHARE = Number(0, 1)
PART = Number(0, 1, max_open=True)

OPTIMIZERS = ("sgd", "sgd_nesterov", "rmsprop", "adamw")
#: Names of schedules: torchvision's beside shorter ones.
SCHEDULES = {
    "step": "step",
    "cosine": "cosine",
    "exponential": "exponential",
    "steplr": "step",
    "cosineannealinglr": "cosine",
    "exponentiallr": "exponential",
}
#: Recipes that training with quantization can start from; the last one is no PTQ at all.
STARTS = (*RECIPES, "none")
#: How transfer learning quantizes.
QUANTIZE = ("auto", "ptq", "qat", "none")


class _ScheduleName(click.Choice):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Returns the schedule's short name."""
        return SCHEDULES[super().convert(value, param, ctx)]


def _choice(*names: str) -> click.Choice:
    return click.Choice(names, case_sensitive=False)


@dataclass(frozen=True)
class DataOptions(Options):
    """Images: where they come from and what is done to them."""

    data: str | None = option(
        None, type=click.Choice(NAMED_DATA), help="Data that need no download."
    )
    data_path: str | None = option(None, help="A folder with train/CLASS/* and val/CLASS/*.")
    augment: str | None = option(None, type=click.Choice(AUGMENTATIONS), help="By the data.")
    auto_augment: str | None = option(
        None,
        type=click.Choice(["imagenet", "ra", "ta_wide", "augmix"]),
        help="AutoAugment, RandAugment, TrivialAugment or AugMix on top.",
    )
    random_erase: float = option(0.0, type=SHARE, help="Probability to blank a rectangle.")
    mixup_alpha: float = option(0.0, type=NOT_BELOW_0, help="0 for no mixup.")
    cutmix_alpha: float = option(0.0, type=NOT_BELOW_0, help="0 for no CutMix.")
    ra_reps: int = option(1, type=POSITIVE, help="Repeated augmentation: copies per epoch.")
    train_crop_size: int | None = option(None, type=POSITIVE, help="Pixels; by the data.")
    val_resize_size: int | None = option(None, type=POSITIVE, help="Pixels; by the data.")
    val_crop_size: int | None = option(None, type=POSITIVE, help="Pixels; the training crop's.")
    batch_size: int | None = option(
        None,
        "-b",
        type=POSITIVE,
        help="Images per step and process; 32, or all there are.",
        decisive=False,
    )
    workers: int | None = option(
        None, "-j", type=COUNT, help="Processes that read pictures; by the data.", decisive=False
    )


@dataclass(frozen=True)
class ScheduleOptions(Options):
    """How long training takes, and the learning rate of each epoch.

    Raises:
        ArgumentError: The warmup is as long as the training.
    """

    epochs: int = option(90, type=POSITIVE, decisive=False)
    start_epoch: int = option(
        0, type=COUNT, help="Leaves out the epochs before it.", decisive=False
    )
    lr: float = option(0.1, type=ABOVE_0)
    lr_scheduler: str = option("step", type=_ScheduleName(list(SCHEDULES), case_sensitive=False))
    lr_step_size: int = option(30, type=POSITIVE, help="Epochs between steps.")
    lr_gamma: float = option(0.1, type=SHARE, help="Factor of a step.")
    lr_min: float = option(0.0, type=NOT_BELOW_0, help="The end of a cosine schedule.")
    lr_warmup_epochs: int = option(0, type=COUNT)
    lr_warmup_method: str = option("linear", type=_choice("linear", "constant"))
    lr_warmup_decay: float | None = option(
        None, type=SHARE, help="First factor; 1 / (warmup epochs + 1)."
    )

    def __post_init__(self) -> None:
        """Checks the values, also against each other."""
        super().__post_init__()
        if self.lr_warmup_epochs >= self.epochs:
            raise ArgumentError(
                f"--lr-warmup-epochs {self.lr_warmup_epochs} should be less than --epochs "
                f"{self.epochs}."
            )


@dataclass(frozen=True)
class OptimizerOptions(Options):
    """How a step changes the weights."""

    opt: str = option("sgd", type=_choice(*OPTIMIZERS))
    momentum: float = option(0.9, type=PART)
    weight_decay: float = option(1e-4, "--wd", type=NOT_BELOW_0)
    norm_weight_decay: float | None = option(
        None, type=NOT_BELOW_0, help="Of batch norm; as the others."
    )
    clip_grad_norm: float | None = option(None, type=ABOVE_0, help="Longest gradient; no limit.")


@dataclass(frozen=True)
class LossOptions(Options):
    """What training minimizes."""

    label_smoothing: float = option(0.0, type=PART)
    teacher: str | None = option(
        None, help="A model.safetensors to learn from as well; 'self': where QAT starts."
    )
    teacher_share: float = option(0.5, type=SHARE, help="How much the teacher counts.")
    teacher_temperature: float = option(2.0, type=ABOVE_0)


@dataclass(frozen=True)
class AverageOptions(Options):
    """Averaged weights."""

    model_ema: bool = option(False, help="Average the weights and keep the average.")
    model_ema_steps: int = option(32, type=POSITIVE, help="Steps between updates.")
    model_ema_decay: float = option(0.99998, type=SHARE)


@dataclass(frozen=True)
class ComputeOptions(Options):
    """How and where training computes."""

    device: str | None = option(
        None, help="cpu, cuda, ...; a GPU where there is one.", decisive=False
    )
    amp: bool = option(False, help="Compute in 16 bits where that is safe.")
    amp_dtype: str = option("bfloat16", type=_choice("bfloat16", "float16"))
    channels_last: bool = option(False, help="Memory format of images and weights.")
    compile: bool = option(False, help="Train with torch.compile.", decisive=False)
    sync_bn: bool = option(False, help="Batch norm over the batches of all processes.")
    seed: int = option(0, type=Whole(0, MOST_SEED))
    threads: int | None = option(
        None, type=Whole(1, MOST_THREADS), help="CPU threads; all cores.", decisive=False
    )
    use_deterministic_algorithms: bool = option(False, help="Also on a GPU.", decisive=False)


@dataclass(frozen=True)
class OutputOptions(Options):
    """What is written where, and when."""

    DECISIVE = False

    output_dir: str | None = option(
        None, required=True, help="Where checkpoints, weights and the log go."
    )
    resume: str | None = option(
        None,
        is_flag=False,
        flag_value="auto",
        help='A checkpoint.pth of the same run; alone or "auto": the folder\'s, if any.',
    )
    overwrite: bool = option(False, help="Replace the run that --output-dir holds.")
    checkpoint_steps: int | None = option(
        None, type=POSITIVE, help="Checkpoints within epochs, too."
    )
    eval_every: int = option(1, type=POSITIVE, help="Epochs between measurements.")
    print_freq: int = option(10, type=POSITIVE, help="Steps between shown figures.")
    tensorboard: bool = option(False, help="Write event files for TensorBoard.")
    plot: bool = option(False, help="Draw curve.png.")
    results: str | None = option(None, help="A CSV file that gets a row with the figures.")
    test_only: bool = option(False, help="Only measure, from --weights or --resume.")

    @property
    def folder(self) -> Path:
        """The output folder.

        Raises:
            ArgumentError: None was given.
        """
        if self.output_dir is None:
            raise ArgumentError("Give --output-dir FOLDER, where the run is written.")
        return Path(self.output_dir)


@dataclass(frozen=True)
class TrainOptions(Options):
    """The options of every training."""

    data: DataOptions = dataclasses.field(default_factory=DataOptions)
    schedule: ScheduleOptions = dataclasses.field(default_factory=ScheduleOptions)
    optimizer: OptimizerOptions = dataclasses.field(default_factory=OptimizerOptions)
    loss: LossOptions = dataclasses.field(default_factory=LossOptions)
    average: AverageOptions = dataclasses.field(default_factory=AverageOptions)
    compute: ComputeOptions = dataclasses.field(default_factory=ComputeOptions)
    output: OutputOptions = dataclasses.field(default_factory=OutputOptions)


@dataclass(frozen=True)
class StartOptions(Options):
    """Which model training starts from.

    Attributes:
        told: What else `load_float` has to know of `checkpoint`, by the names of its keywords.
    """

    model: str | None = option(
        None, help="A model of the zoo (see: qzoo list); by default the checkpoint's."
    )
    checkpoint: str | None = option(None, help="A model.safetensors to start from instead.")
    weights: str | None = option(
        None, help="torchvision's float weights, such as DEFAULT, or none."
    )
    told: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class QatOptions(Options):
    """Quantization-aware training."""

    backend: str | None = option(
        None, type=click.Choice(list(BACKENDS)), help="onednn; without VNNI, x86."
    )
    recipe: str = option(
        "default", type=click.Choice(STARTS), help="The PTQ whose result training starts from."
    )
    num_calibration_batches: int = option(
        32, type=POSITIVE, help="For that PTQ, of --batch-size images."
    )
    num_observer_update_epochs: int = option(
        4, type=COUNT, help="Epochs in which batches move the ranges."
    )
    num_batch_norm_update_epochs: int = option(
        3, type=COUNT, help="Epochs with batch statistics; --batch-norm keep."
    )
    batch_norm: str = option("fold", type=click.Choice(qat.BATCH_NORM))
    learn_ranges: bool = option(False, help="Train the steps of the grids, too (LSQ).")
    keep_float: tuple[str, ...] = option((), metavar="PATTERN", help="Layers left in float.")
    flow: str = option("eager", type=click.Choice(qat.FLOWS))


@dataclass(frozen=True)
class Int8Options(Options):
    """How a fine-tuned model is quantized."""

    DECISIVE = False

    quantize: str = option(
        "auto",
        type=click.Choice(QUANTIZE),
        help="auto: PTQ, and QAT where that loses more than --max-drop.",
    )
    max_drop: float = option(0.5, type=NOT_BELOW_0, help="Points of top-1.")
    recipe: str = option("default", type=click.Choice(list(RECIPES)), help="Of PTQ.")
    backend: str | None = option(
        None, type=click.Choice(list(BACKENDS)), help="onednn; without VNNI, x86."
    )
    qat_epochs: int = option(3, type=POSITIVE)
    qat_lr: float | None = option(None, type=ABOVE_0, help="A tenth of --lr.")


@dataclass(frozen=True)
class TransferOptions(Options):
    """Transfer learning."""

    start: StartOptions = dataclasses.field(default_factory=StartOptions)
    head_epochs: int = option(1, type=COUNT, help="Epochs in which the new head alone is trained.")
    head_lr_factor: float = option(
        10.0, type=ABOVE_0, help="Learning rate of the head over that of the rest."
    )
    int8: Int8Options = dataclasses.field(default_factory=Int8Options)
    train: TrainOptions = dataclasses.field(default_factory=TrainOptions)


#: Default values of transfer learning that differ from those of training from scratch.
TRANSFER_DEFAULTS: dict[str, Any] = {
    "weights": "DEFAULT",
    "epochs": 10,
    "lr": 0.0003,
    "lr_scheduler": "cosine",
    "opt": "adamw",
    "weight_decay": 0.01,
    "label_smoothing": 0.1,
}


def option_values(**values: Any) -> TrainOptions:
    """Returns the options of training with these values, and default values for all others.

    Raises:
        ArgumentError: A value that an option does not take.
        TypeError: There is no such option.
    """
    return TrainOptions().changed(**values)


def training_options(group: type[Options] = TrainOptions, **defaults: Any) -> Callable[[F], F]:
    """Returns a decorator that gives a command `--preset` and the options of a group.

    Args:
        group: The group.
        defaults: Other default values, by name.

    Raises:
        TypeError: There is no such option.
    """
    give = click_options(group, **defaults)
    return lambda function: _preset_option(give(function))


def _apply_preset(ctx: click.Context, _: click.Parameter, name: str | None) -> str | None:
    if name is None or ctx.resilient_parsing:
        return name
    values = preset(name)
    own = {p.name for p in ctx.command.params}
    if foreign := sorted(set(values) - own):
        raise click.UsageError(
            f"--preset {name} sets --{foreign[0].replace('_', '-')}, which this script does not "
            "have: it is a recipe of another script."
        )
    ctx.default_map = {**(ctx.default_map or {}), **values}
    tell(
        f"--preset {name}: torchvision ran {PROCESSES} processes with batches of "
        f"{values['batch_size']}; with fewer images per step lower --lr in proportion."
    )
    return name


_preset_option = click.option(
    "--preset",
    callback=_apply_preset,
    is_eager=True,
    expose_value=False,
    metavar="NAME",
    help=f"A published recipe; other options override it: {', '.join(PRESETS)}.",
)
