"""What all methods of post-training quantization take and give in references/compare_ptq.py."""

from __future__ import annotations

import contextlib
import io
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from qzoo.quantize.data import Calibration

T = TypeVar("T")


@dataclass
class Case:
    """One float model, and what all methods quantize it with.

    Attributes:
        name: Of the model in the zoo.
        checkpoint: Its file of float weights.
        model: It, in eval mode.
        train: The training split through the evaluation transforms, with `targets`.
        calibration: Which images of `train` methods calibrate on.
        images: These images, float32 [N, 3, H, W].
        folder: Where methods may write.
        threads: CPU threads; None leaves that to the runtimes.
    """

    name: str
    checkpoint: Path
    model: nn.Module
    train: Any
    calibration: Calibration
    images: Tensor
    folder: Path
    threads: int | None = None


@dataclass
class Quantized:
    """What a method made of a float model.

    Attributes:
        model: Float32 images [N, 3, H, W] in, logits [N, classes] out.
        mib: Size of what it wrote to disk.
        seconds: Wall time from calibration to the int8 model.
        cpu_seconds: CPU time of the same, over all threads.
        runtime: What executes `model`.
        backend: qzoo's name of the numeric configuration, where it has one.
        settings: What was asked for, in the tool's own words.
        calibration_sha256: Which images it chose, where it chose them itself.
        again: The same integers on ONNX Runtime, as a check, where `model` runs on PyTorch.
    """

    model: nn.Module
    mib: float
    seconds: float
    cpu_seconds: float
    runtime: str
    backend: str = ""
    settings: str = ""
    calibration_sha256: str = ""
    again: nn.Module | None = None


class Call(nn.Module):
    """A function of images that `qzoo.datasets.evaluate` can measure."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits [N, classes] of float32 images [N, 3, H, W]."""
        return self.function(images)


def timed(function: Callable[[], T]) -> tuple[T, float, float]:
    """Returns a call's result, its wall time and its CPU time in seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def mib(*paths: Path) -> float:
    """Returns the size of files together in MiB."""
    return round(sum(path.stat().st_size for path in paths) / 2**20, 3)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps what other tools print, log and warn of off the terminal; errors are raised."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
