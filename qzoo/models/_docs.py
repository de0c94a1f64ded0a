"""The documentation that all builders share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

F = TypeVar("F", bound=Callable[..., object])

_SHARED = """

    Args:
        weights: With `quantize=True` a member of the model's int8 weight enum, else of
            torchvision's float enum; or its name, such as "DEFAULT"; or None for random weights.
        progress: Whether a download shows a progress bar on stderr.
        quantize: Whether to return a native int8 model in eval mode (CPU only) instead of the
            float model with its quantization markers.
        backend: Numeric configuration: "fbgemm", "x86", "onednn" or "qnnpack". None takes the
            weights' own and, without weights, the best of this machine.
        **kwargs: The model's own keywords, as torchvision's float builder takes them. With float
            weights, `num_classes` other than the checkpoint's gives a fresh head on the pretrained
            backbone.

    Returns:
        A module that takes float32 [N, 3, H, W] and gives float32 logits [N, num_classes].

    Raises:
        ArgumentError: Arguments that do not fit together, or do not fit the weights.
        UnknownNameError: An unknown weights member or backend.
        DownloadError: The weights could not be fetched or verified.
    """


def share_docs(builder: F) -> F:
    """Appends the argument documentation that all builders share."""
    builder.__doc__ = (builder.__doc__ or "").rstrip() + _SHARED
    return builder
