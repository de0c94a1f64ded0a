"""The training engine: options, data, the training loop, checkpoints, logs.

The reference scripts and `qzoo finetune` stand on it.

A script is little more than

    @click.command(cls=training.Command, context_settings={"show_default": True})
    @training.training_options()
    def main(**values):
        options = training.TrainOptions.of(values)
        with training.joined(options.compute.device, options.compute.threads) as ranks:
            training.set_up(options, ranks)
            data = training.prepare_data(options, ranks, "resnet18")
            model = training.float_model("resnet18", None, len(data.classes))
            trainer = training.Trainer(model, data, options, ranks, script="train.py")
            metrics = trainer.fit()
"""

from .. import _torch as _torch
from ..importers.checkpoint import load_float, save_float
from ..quantize.data import stratified
from . import sources
from .batches import Batches, LoadedBatches, MemoryBatches
from .checkpoint import load_checkpoint, save_checkpoint
from .distributed import Ranks, evaluate_all, joined
from .files import check_classes, check_size, float_model, put_row, trained_model, write_csv
from .groups import Options, click_options, option
from .learner import Learner
from .loop import Parts, Trainer
from .loss import Loss, make_loss
from .optim import make_optimizer, make_schedule, parameter_groups
from .options import (
    POSITIVE,
    TRANSFER_DEFAULTS,
    QatOptions,
    StartOptions,
    TrainOptions,
    TransferOptions,
    option_values,
    training_options,
)
from .order import Order, stream
from .position import Hooks, Position
from .prepare import Prepared, measure, prepare_data, set_up
from .qat import Finished, Freezing, Start, finish_qat, start_qat
from .runs import FLOAT, INT8, START, check_run, find_run, new_folder, open_run
from .script import Command, Failure, command_line, environment, mib, say, tell
from .split import note_split
from .transfer import (
    Outcome,
    measure_latency,
    starting_model,
    summary,
    transfer,
)

__all__ = [
    "FLOAT",
    "INT8",
    "POSITIVE",
    "START",
    "TRANSFER_DEFAULTS",
    "Batches",
    "Command",
    "Failure",
    "Finished",
    "Freezing",
    "Hooks",
    "Learner",
    "LoadedBatches",
    "Loss",
    "MemoryBatches",
    "Options",
    "Order",
    "Outcome",
    "Parts",
    "Position",
    "Prepared",
    "QatOptions",
    "Ranks",
    "Start",
    "StartOptions",
    "TrainOptions",
    "Trainer",
    "TransferOptions",
    "check_classes",
    "check_run",
    "check_size",
    "click_options",
    "command_line",
    "environment",
    "evaluate_all",
    "find_run",
    "finish_qat",
    "float_model",
    "joined",
    "load_checkpoint",
    "load_float",
    "make_loss",
    "make_optimizer",
    "make_schedule",
    "measure",
    "measure_latency",
    "mib",
    "new_folder",
    "note_split",
    "open_run",
    "option",
    "option_values",
    "parameter_groups",
    "prepare_data",
    "put_row",
    "save_checkpoint",
    "save_float",
    "say",
    "set_up",
    "sources",
    "start_qat",
    "starting_model",
    "stratified",
    "stream",
    "summary",
    "tell",
    "trained_model",
    "training_options",
    "transfer",
    "write_csv",
]
