"""Transfer learning: a new head, fine-tuning, int8. What `transfer.py` and `qzoo finetune` do."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._core.timing import interleave
from .._torch.threads import torch_threads
from ..datasets.evaluate import Metrics, points
from ..datasets.holdout import check_pictures
from ..datasets.sources import NAMED_DATA, Data
from ..errors import ArgumentError, ArtifactError, DownloadError
from ..importers.checkpoint import load_float, save_float
from ..native.model import attach_info, model_info, save
from ..pictures.classes import class_names
from ..pictures.folders import same_names
from ..quantize import ptq
from ..quantize.steps.ranks import spread_calibration
from ..runtimes.api import compile
from ..transforms import ImageClassification
from . import sources
from .checkpoint import CHECKPOINT, read_checkpoint
from .distributed import Ranks, evaluate_all
from .files import digest, float_model
from .loop import Parts, Trainer
from .loss import SELF, make_loss
from .optim import make_optimizer
from .options import DataOptions, QatOptions, StartOptions, TransferOptions
from .position import Hooks, Position
from .prepare import Prepared, prepare_data
from .qat import finish_qat, start_qat
from .runs import FLOAT, INT8, QAT, open_run
from .script import mib, say, tell
from .split import note_split


@dataclass
class Outcome:
    """What transfer learning came to.

    Attributes:
        model: The fine-tuned float model.
        int8: The native int8 model, or None.
        metrics: "float" and, where it was made, "int8" to the accuracy on the held-out split.
        files: The same to the file.
        method: How int8 was made, "PTQ" or "QAT".
        latency_ms: The same to milliseconds per picture, batch 1, and what executed it.
    """

    model: nn.Module
    metrics: dict[str, Metrics]
    files: dict[str, Path]
    int8: nn.Module | None = None
    method: str = ""
    latency_ms: dict[str, tuple[float, str]] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class _Run:
    """What all parts of a run share: its data, options, processes, and the script's name."""

    data: Prepared
    options: TransferOptions
    ranks: Ranks
    script: str

    @property
    def output(self) -> Path:
        return self.options.train.output.folder

    def figures(self, metrics: Metrics) -> dict[str, Any]:
        """Returns accuracies as an artifact records them."""
        return {self.data.data.held_out: metrics.to_dict()}


def transfer(options: TransferOptions, ranks: Ranks, script: str, command: str) -> Outcome:
    """Fine-tunes a model on new classes, quantizes it, measures both, and writes both.

    The head is replaced; for `head_epochs` epochs it alone is trained, then everything. The int8
    model is that of PTQ or, where that loses more than `max_drop` points of top-1 and `quantize` is
    "auto", that of quantization-aware training from there.

    Args:
        options: The options.
        ranks: The processes.
        script: Name of the script, such as "transfer.py".
        command: How to call it again.

    Raises:
        ArgumentError: Data or options that do not fit together, a damaged picture, a training that
            diverged.
        ArtifactError: A file that cannot be read or written.
        DownloadError: The weights could not be fetched.
    """
    train = options.train
    source = open_pictures(train.data, ranks)
    model = starting_model(options.start, source.classes)
    source = as_trained(source, model)
    data = prepare_data(train, ranks, model_info(model).name, data=source)
    run = _Run(data, options, ranks, script)
    head = head_name(model)
    open_run(train.output, ranks)
    note_split(model, data, train, ranks)
    parts = Parts(
        hooks=Unfreezing(head, options.head_epochs),
        loss=make_loss(train.loss, data, model),
        optimizer=_optimizer(model, head, options),
        settings=options.settings(),
    )
    metrics = Trainer(model, data, train, ranks, script=script, parts=parts).fit()
    model.cpu().eval().requires_grad_()
    recipe = {"train": command, "seed": train.compute.seed, "threads": torch.get_num_threads()}
    attach_info(
        model,
        dataclasses.replace(
            model_info(model),
            classes=list(data.classes),
            transforms=data.preset.to_dict(),
            recipe=recipe,
            metrics=run.figures(metrics),
        ),
    )
    if ranks.first:
        _save_float(model, run.output)
    done = Outcome(model, {"float": metrics}, {"float": run.output / FLOAT})
    if options.int8.quantize != "none":
        _quantize(done, run)
    return done


def _save_float(model: nn.Module, output: Path) -> None:
    """Writes the float model; an int8 model of other weights does not stay beside it."""
    path, int8 = output / FLOAT, output / INT8
    if int8.exists():
        try:
            kept = digest(load_float(path).state_dict()) == digest(model.state_dict())
        except ArtifactError:
            kept = False
        if not kept:
            int8.unlink()
            tell(f"Removed {int8}, which was made of other float weights.")
    save_float(model, path)


def _quantize(done: Outcome, run: _Run) -> None:
    """Makes the int8 model of the fine-tuned one, and notes it in the outcome."""
    how, data, ranks = run.options.int8, run.data, run.ranks
    kept = {"float_metrics": run.figures(done.metrics["float"])}
    if how.quantize == "qat":
        _train_quantized(done, run, kept)
        return
    with spread_calibration():
        int8 = ptq(
            done.model,
            data.data.split("train", data.preset),
            backend=how.backend,
            recipe=how.recipe,
            seed=run.options.train.compute.seed,
            progress=ranks.first,
        )
    metrics = evaluate_all(int8, data.test_set, ranks, workers=data.workers)
    lost = done.metrics["float"].top1 - metrics.top1
    if how.quantize == "auto" and lost > how.max_drop:
        say(
            f"PTQ loses {points(lost, how.max_drop)} points of top-1, more than "
            f"{how.max_drop:g}: going on with quantization-aware training."
        )
        _train_quantized(done, run, kept)
        if not ranks.first or done.metrics["int8"].top1 >= metrics.top1:
            return
        below = points(metrics.top1 - done.metrics["int8"].top1, 0)
        say(f"Training ended {below} points below PTQ, whose model is kept: try a lower --qat-lr.")
    done.int8, done.method = int8, "PTQ"
    done.metrics["int8"], done.files["int8"] = metrics, run.output / INT8
    if ranks.first:
        recipe = {**model_info(int8).recipe, **kept}
        save(int8, done.files["int8"], recipe=recipe, metrics=run.figures(metrics))


def _train_quantized(done: Outcome, run: _Run, kept: Mapping[str, Any]) -> None:
    """Trains on from PTQ with quantization in the loop, in a folder of its own."""
    train, how, ranks = run.options.train, run.options.int8, run.ranks
    folder, float_sha256 = run.output / QAT, digest(done.model.state_dict())
    resume = "auto" if train.output.resume else None
    if ranks.first and folder.exists() and not (resume and _is_of(folder, float_sha256)):
        tell(f"{folder} is of another float model: training with quantization starts anew.")
        shutil.rmtree(folder)
    ranks.barrier()
    own = train.changed(
        epochs=how.qat_epochs,
        lr=how.qat_lr or train.schedule.lr / 10,
        lr_scheduler="cosine",
        lr_warmup_epochs=0,
        start_epoch=0,
        model_ema=False,
        teacher=SELF,
        output_dir=str(folder),
        resume=resume,
        plot=False,
    )
    ways = QatOptions(backend=how.backend, recipe=how.recipe)
    start = start_qat(done.model, run.data, own, ways, ranks, {"float_sha256": float_sha256})
    parts = dataclasses.replace(start.parts, lr_option="--qat-lr")
    trained = Trainer(start.model, run.data, own, ranks, script=run.script, parts=parts).fit()
    ranks.barrier()
    if ranks.first:
        info = model_info(done.model)
        end = finish_qat(start.model, trained, run.data, run.output, recipe=kept, info=info)
        done.int8, done.method = end.int8, "QAT"
        done.metrics["int8"], done.files["int8"] = end.metrics, end.file


def _is_of(folder: Path, float_sha256: str) -> bool:
    """Whether training with quantization in a folder started from this float model."""
    path = folder / CHECKPOINT
    if not path.exists():
        return False
    stored: object = read_checkpoint(path)["settings"].get("float_sha256")
    return stored == float_sha256


def open_pictures(options: DataOptions, ranks: Ranks) -> Data:
    """Opens the data that the options name, and checks all pictures of it.

    A folder without the halves train and val gets a held-out share of each class.

    Raises:
        ArgumentError: No such data, a single class, or pictures that cannot be read.
    """
    data = sources.open_data(options.data, options.data_path)
    if options.data_path is not None:
        with ranks.first_alone():
            check_pictures(data, progress=ranks.first)
    return data


def starting_model(options: StartOptions, classes: list[str]) -> nn.Module:
    """Builds the model to fine-tune, with a head for the classes.

    A checkpoint of the same classes keeps its head; every other model gets a fresh one.

    Args:
        options: The options; of a checkpoint, `model` says what it is where the file does not.
        classes: Names of the classes.

    Raises:
        ArgumentError: The options name no model.
        DownloadError: The weights could not be fetched.
    """
    name, weights = options.model, options.weights
    if options.checkpoint is None:
        if name is None:
            raise ArgumentError("Give --model NAME or --checkpoint FILE to start from.")
        wanted = None if str(weights).lower() == "none" else weights
        try:
            return float_model(name, wanted, len(classes))
        except DownloadError as error:
            raise DownloadError(
                f"{error} Without a connection, start from a file (--checkpoint FILE) or from "
                "random weights (--weights none), which needs many pictures."
            ) from None
    model = load_float(Path(options.checkpoint), name, **options.told)
    if same_names(class_names(model_info(model).classes), classes):
        return model
    path = head_name(model)
    head = model.get_submodule(path)
    assert isinstance(head, nn.Linear)
    model.set_submodule(path, nn.Linear(head.in_features, len(classes)))
    info = model_info(model)
    kwargs = {**info.builder_kwargs, "num_classes": len(classes)}
    return attach_info(model, dataclasses.replace(info, builder_kwargs=kwargs, classes=None))


def as_trained(data: Data, model: nn.Module) -> Data:
    """Returns data whose pictures are prepared as those that a model was trained on.

    That is its normalization and, for folders, its sizes; a model without transforms of its own
    takes the data's.
    """
    stored = model_info(model).transforms
    if stored is None:
        return data
    preset = ImageClassification.from_dict(stored)

    def make_preset(crop: int, resize: int) -> ImageClassification:
        changed = {**stored, "crop_size": crop, "resize_size": resize}
        return ImageClassification.from_dict(changed)

    if data.name in NAMED_DATA:
        return dataclasses.replace(data, make_preset=make_preset)
    size, resize = preset.crop_size[0], preset.resize_size[0]
    return dataclasses.replace(data, make_preset=make_preset, size=size, resize=resize)


def head_name(model: nn.Module) -> str:
    """Returns the name of a model's last linear layer, which gives the logits."""
    return [n for n, m in model.named_modules() if isinstance(m, nn.Linear)][-1]


class Unfreezing(Hooks):
    """Trains the head alone at first, with the rest as it is in evaluation, and then everything.

    Args:
        head: Name of the head.
        epochs: How many epochs the head trains alone.
    """

    def __init__(self, head: str, epochs: int) -> None:
        self.head, self.epochs = head, epochs

    def before_epoch(self, model: nn.Module, at: Position) -> None:
        """Freezes or unfreezes all but the head."""
        frozen = at.epoch < self.epochs
        model.requires_grad_(not frozen)
        if frozen:
            model.eval()  # batch norm keeps the statistics of what it was trained on
        head = model.get_submodule(self.head)
        head.requires_grad_().train()


def _optimizer(model: nn.Module, head: str, options: TransferOptions) -> torch.optim.Optimizer:
    own = list(model.get_submodule(head).parameters())
    known = {id(p) for p in own}
    rest = [p for p in model.parameters() if id(p) not in known]
    lr = options.train.schedule.lr
    groups: list[dict[str, Any]] = [
        {"params": own, "lr": lr * options.head_lr_factor},
        {"params": rest},
    ]
    return make_optimizer(groups, options.train.optimizer, lr)


def measure_latency(done: Outcome, threads: int = 1) -> None:
    """Measures how long float and int8 take for a picture, in turn, and notes it in the outcome.

    Args:
        done: What transfer learning came to; its int8 model runs on the fastest installed runtime.
        threads: CPU threads.
    """
    preset = model_info(done.model).transforms
    assert preset is not None
    side = preset["crop_size"] if isinstance(preset["crop_size"], int) else preset["crop_size"][0]
    x = torch.zeros(1, 3, side, side, dtype=torch.float32, device="cpu")
    calls: dict[str, Any] = {"float": lambda: done.model(x)}
    executors = {"float": "torch"}
    with torch_threads(threads), torch.inference_mode():
        if done.int8 is not None:
            compiled = compile(done.int8, "auto", threads, 1, side)
            calls["int8"] = lambda: compiled(x)
            executors["int8"] = compiled.runtime
        timings = interleave(calls)
    done.latency_ms = {k: (t.median_ms, executors[k]) for k, t in timings.items()}


def summary(done: Outcome) -> list[str]:
    """Returns the lines that say what came out, ending with the command to classify a picture."""
    name = model_info(done.model).architecture
    lines = []
    for kind, metrics in done.metrics.items():
        low, high = metrics.interval()
        speed = ""
        if kind in done.latency_ms:
            milliseconds, runtime = done.latency_ms[kind]
            speed = f", {milliseconds:.2f} ms on {runtime}"
        how = f" ({done.method})" if kind == "int8" else ""
        lines.append(
            f"{name} {kind:>5}{how}: top-1 {metrics.top1:.2f} % ({low:.2f} to {high:.2f}) on "
            f"{metrics.n} pictures, {mib(done.files[kind]):.2f} MiB{speed}"
        )
    if "int8" in done.files:
        lines.append("Classify a new picture:")
        lines.append(f"  qzoo classify picture.jpg --model {done.files['int8']}")
    return lines
