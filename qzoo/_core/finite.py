"""What int8 models do with pictures that hold NaN or infinity: refuse them, on every runtime."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..errors import ArgumentError


def check_finite(x: Tensor) -> None:
    """Checks that a batch has no values that no integer stands for.

    PyTorch's engines, ONNX Runtime, OpenVINO and others each make another integer of NaN, and some
    of infinity too, so that one picture would get several answers, all of them meaningless.

    Args:
        x: Images [N, ...], float.

    Raises:
        ArgumentError: A value is NaN or infinite; the message names the pictures.
    """
    x = x.detach()
    # A tenth of the time of torch.isfinite. Sums of large finite values may overflow, too.
    if math.isfinite(_sum(x)):
        return
    finite = torch.isfinite(x).reshape(len(x), -1).all(dim=1).tolist()
    bad = [number for number, good in enumerate(finite) if not good]
    if bad:
        shown = ", ".join(map(str, bad[:10])) + ", ..." * (len(bad) > 10)
        raise ArgumentError(
            f"{len(bad)} of the {len(x)} images hold NaN or infinity (number {shown}, counted from "
            "0), which int8 models cannot take: leave those images out, or mend what makes them."
        )


def _sum(x: Tensor) -> float:
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return float(x.sum())
    # By NumPy, which has no threads: in a process forked after the first use of PyTorch's, it would
    # wait for them for ever, even where the model itself needs none.
    with np.errstate(all="ignore"):
        return float(x.numpy().sum())
