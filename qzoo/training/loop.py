"""The training loop: epochs, measurements, checkpoints, logs."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from tqdm import tqdm

from ..datasets.evaluate import Metrics
from ..errors import ArgumentError, ArtifactError
from . import checkpoint
from .distributed import Ranks, evaluate_all
from .files import write_csv
from .learner import Learner
from .logs import TensorBoard, check_plotting, plot_curve
from .loss import Loss
from .options import TrainOptions
from .position import Hooks, Position
from .prepare import Prepared
from .runs import check_run
from .script import say, tell


@dataclass(frozen=True)
class Parts:
    """What a script has of its own beside the options.

    Attributes:
        hooks: What to do between steps.
        loss: Gives the mean loss of logits, targets and images; None for plain cross-entropy.
        optimizer: Made of the model's parameters; None for that of the options, on all of them.
        settings: What decides on the result besides the options: a resumed run must have the same.
        lr_option: The option that sets the learning rate of this training.
    """

    hooks: Hooks = field(default_factory=Hooks)
    loss: nn.Module | None = None
    optimizer: Optimizer | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    lr_option: str = "--lr"


class Trainer:
    """Trains a model.

    Attributes:
        learner: The model and its optimizer.
        log: The rows of log.csv.
        output: The folder for what is written.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Prepared,
        options: TrainOptions,
        ranks: Ranks,
        *,
        script: str,
        parts: Parts | None = None,
    ) -> None:
        """Makes everything ready, and goes on from a checkpoint where the options say so.

        Args:
            model: The model; moved to the device and changed in place.
            data: Images and batches.
            options: The options.
            ranks: The processes.
            script: Name of the script, such as "train.py".
            parts: What the script has of its own.

        Raises:
            ArgumentError: The output folder holds another run.
            ArtifactError: A checkpoint that cannot be resumed from.
            MissingDependencyError: An optional package is missing.
        """
        self.data, self.options, self.ranks, self.script = data, options, ranks, script
        self.parts = parts or Parts()
        loss = self.parts.loss or Loss(options.loss.label_smoothing)
        self.learner = Learner(model, data, options, ranks, loss, self.parts.optimizer)
        if options.output.plot:
            check_plotting()
        self.settings: dict[str, Any] = {
            "script": script,
            **options.settings(),
            "images_per_step": data.batch_size * ranks.world,
            "classes": list(data.classes),
            **self.parts.settings,
        }
        self.epochs = options.schedule.epochs
        if options.schedule.lr_scheduler == "cosine" or options.average.model_ema:
            self.settings["epochs"] = self.epochs
        self.output = options.output.folder
        self.log: list[dict[str, Any]] = []
        self.at = Position(options.schedule.start_epoch, 0, len(data.batches))
        self._metrics: Metrics | None = None
        self._sums = torch.zeros(3, dtype=torch.float64, device=ranks.device)
        self._started, self._earlier = time.perf_counter(), 0.0
        self._open()

    def fit(self) -> Metrics:
        """Trains to the last epoch and returns the accuracy on the held-out split.

        Afterwards the model has the weights to keep, with --model-ema the averaged ones, and is in
        eval mode.

        Raises:
            ArgumentError: Training diverged, or an image is unfit.
            ArtifactError: A file cannot be written; the last checkpoint is whole.
        """
        wanted = self.options.output.tensorboard and self.ranks.first
        folder = self.output / "tensorboard" if wanted else None
        with TensorBoard(folder, self.at.total) as board:
            while self.at.epoch < self.epochs:
                self._started = time.perf_counter()
                self._train_epoch(board)
                self._close_epoch(board)
        metrics = self._metrics or self.evaluate()
        self.learner.finish()
        if self.options.output.plot and self.ranks.first and self.log:
            plot_curve(self.output / "curve.png", self.log, self.output.name)
        return metrics

    def evaluate(self) -> Metrics:
        """Measures the weights to keep on the held-out split, in all processes together."""
        self.ranks.share_buffers(self.learner.model)
        with self.learner.kept_weights():
            return evaluate_all(
                self.learner.model, self.data.test_set, self.ranks, workers=self.data.workers
            )

    def save(self) -> None:
        """Writes a checkpoint.

        Raises:
            ArgumentError: Training diverged.
            ArtifactError: The file cannot be written; an earlier one is still there.
        """
        self._check(weights=True)
        state = {
            "settings": self.settings,
            "threads": torch.get_num_threads(),
            "data_sha256": self.data.sha256,
            "epoch": self.at.epoch,
            "step": self.at.step,
            "sums": self.ranks.total(self._sums).tolist(),
            "seconds": self._elapsed() if self.at.step else 0.0,
            "random": self.ranks.gather(checkpoint.random_state(self.ranks.device)),
            "log": self.log,
            **self.learner.state(),
        }
        if self.ranks.first:
            path = self.output / checkpoint.CHECKPOINT
            try:
                checkpoint.save_checkpoint(path, state)
            except ArtifactError as error:
                resume = f"--resume {path}" if self.script.endswith(".py") else "--resume"
                earlier = f" The one before it is whole: make room, then {resume}."
                raise ArtifactError(f"{error}{earlier if path.exists() else ''}") from None

    def load(self, path: Path) -> None:
        """Goes on from a checkpoint.

        Raises:
            ArtifactError: It is missing, damaged, or of another run.
        """
        state = checkpoint.load_checkpoint(path, self.settings)
        checkpoint.check_state(path, state)
        self._check_position(path, state)
        self.learner.load(state)
        self.at = self.at._replace(epoch=state["epoch"], step=state["step"])
        self.log, self._earlier = state["log"], state["seconds"]
        if self.ranks.first:
            self._sums += torch.tensor(state["sums"], dtype=torch.float64, device="cpu").to(
                self._sums
            )
        randoms = state["random"]
        if len(randoms) == self.ranks.world:
            checkpoint.set_random_state(randoms[self.ranks.rank], self.ranks.device)
        changes = {
            f"{len(randoms)} processes": len(randoms) == self.ranks.world,
            f"--threads {state['threads']}": state["threads"] == torch.get_num_threads(),
            "other training images": state["data_sha256"] == self.data.sha256,
        }
        if not self.ranks.first:
            return
        tell(f"Going on from {path}: {self.at}.")
        if changed := [what for what, same in changes.items() if not same]:
            tell(
                f"It was written with {' and '.join(changed)}, so that the result will not be bit "
                "for bit that of an uninterrupted run."
            )

    def _check_position(self, path: Path, state: Mapping[str, Any]) -> None:
        """Checks that a checkpoint is of a moment of this run."""
        epoch, step, log = state["epoch"], state["step"], state["log"]
        if epoch > self.epochs or step >= self.at.steps:
            raise ArtifactError(
                f"{path} is in epoch {epoch + 1}, step {step}, but this run has "
                f"{self.epochs} epochs of {self.at.steps} steps: resume with the same "
                "options and pictures."
            )
        done = log[-1]["epoch"] if log else 0
        # Without a log nothing was finished; --start-epoch may have left out what came before.
        if epoch != done and (log or epoch == self.epochs):
            raise ArtifactError(
                f"{path} says that {epoch} epochs are done, but its log ends with epoch {done}: it "
                "is damaged. Resume from another one, or start anew."
            )

    def _open(self) -> None:
        self.output.mkdir(parents=True, exist_ok=True)
        path = checkpoint.resume_path(self.options.output.resume, self.output)
        if path is not None:
            self.load(path)
        elif self.ranks.first:
            check_run(self.options.output, self.ranks, (checkpoint.CHECKPOINT,))
        self.ranks.barrier()
        if self.ranks.first:
            checkpoint.remove_leftovers(self.output)

    def _train_epoch(self, board: TensorBoard) -> None:
        options, learner, first = self.options.output, self.learner, self.ranks.first
        learner.model.train()
        self.parts.hooks.before_epoch(learner.model, self.at)
        learner.wrap()
        bar = tqdm(
            self.data.batches.epoch(self.at.epoch, self.at.step),
            f"epoch {self.at.epoch + 1}/{self.epochs}",
            self.at.steps,
            unit="batch",
            leave=False,
            initial=self.at.step,
            disable=not first,
        )
        for images, labels in bar:
            self.parts.hooks.before_step(learner.model, self.at)
            self._sums += learner.step(images, labels, self.at)
            self.at = self.at._replace(step=self.at.step + 1)
            shown = self.at.step % options.print_freq == 0
            # A look at the loss waits for a GPU, but costs a CPU nothing.
            if shown or self.ranks.device.type == "cpu":
                loss = self._check()
            if shown and first:
                bar.set_postfix(loss=f"{loss:.3f}")
                board.add(self.at.total, step_loss=loss, step_lr=learner.lr)
            every = options.checkpoint_steps
            if every and self.at.total % every == 0 and self.at.step < self.at.steps:
                self.save()

    def _close_epoch(self, board: TensorBoard) -> None:
        learner, epoch = self.learner, self.at.epoch + 1
        loss = self._check(weights=True)
        _, right, n = self.ranks.total(self._sums).tolist()
        lr = learner.lr
        learner.schedule.step()
        due = epoch == self.epochs or epoch % self.options.output.eval_every == 0
        self._metrics = self.evaluate() if due else None
        test_top1 = self._metrics.top1 if self._metrics else ""
        figures = {
            "lr": lr,
            "loss": loss,
            "train_top1": 100 * right / n,
            "test_top1": test_top1,
            **self.parts.hooks.after_epoch(learner.model, self.at),
        }
        seconds = round(self._elapsed(), 2)
        self.log.append({"epoch": epoch, **figures, "seconds": seconds})
        self.at = self.at._replace(epoch=epoch, step=0)
        self._earlier = 0.0
        self._sums.zero_()
        self.save()
        if self.ranks.first:
            write_csv(self.output / "log.csv", self.log)
            board.add(self.at.total, **{f"epoch_{k}": v for k, v in figures.items()})
        say(
            f"epoch {epoch}/{self.epochs}: lr {lr:.4g}, loss {loss:.4f}, "
            f"train {100 * right / n:.2f} %, "
            + (f"test {test_top1:.2f} %, " if self._metrics else "")
            + f"{seconds:.1f} s"
        )

    def _check(self, weights: bool = False) -> float:
        """Returns the mean loss of the epoch so far, over all processes.

        Args:
            weights: Whether to look at the weights, too.

        Raises:
            ArgumentError: Something is no finite number.
        """
        total, _, n = self.ranks.total(self._sums).tolist()
        mean = total / n if n else 0.0
        if math.isfinite(mean) and (not weights or self.learner.finite()):
            return mean
        path = self.output / checkpoint.CHECKPOINT
        what = "weights are" if math.isfinite(mean) else "loss is"
        kept = f"the last good checkpoint is kept in {path}" if path.exists() else "none was kept"
        lr_option = self.parts.lr_option
        lower = f"Lower {lr_option} (now {self.learner.lr:g})"
        warmup = "--lr-warmup-epochs or " if lr_option == "--lr" else ""
        raise ArgumentError(
            f"Training diverged: in {self.at} the {what} no longer finite. {lower}, or try "
            f"{warmup}--clip-grad-norm; {kept}."
        )

    def _elapsed(self) -> float:
        """Returns the seconds that this epoch has taken, those before a resumption included."""
        return self._earlier + time.perf_counter() - self._started
