"""What training minimizes."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from ..errors import ArgumentError
from ..importers.checkpoint import load_float
from ..native.model import model_info
from ..pictures.classes import class_names
from ..pictures.folders import same_names
from .options import LossOptions
from .prepare import Prepared


class Loss(nn.Module):
    """Cross-entropy, towards labels and, where there is a teacher, towards its answers.

    With a share a, a temperature T, the model's logits z and the teacher's t, the loss is
    (1 - a) CE(z, label) + a T^2 KL(softmax(t / T) || softmax(z / T)).
    Source: G. Hinton et al., "Distilling the Knowledge in a Neural Network", 2015,
    https://arxiv.org/abs/1503.02531.

    Args:
        label_smoothing: Probability that is spread evenly over the classes.
        teacher: A model with the same classes, or None.
        share: How much the teacher counts, from 0 to 1.
        temperature: How much the teacher's answers are softened, above 0.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        teacher: nn.Module | None = None,
        share: float = 0.5,
        temperature: float = 2.0,
    ) -> None:
        super().__init__()
        self.cross_entropy = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        self.share, self.temperature = share, temperature
        self.teacher = teacher.eval().requires_grad_(False) if teacher is not None else None

    def forward(self, logits: Tensor, labels: Tensor, images: Tensor) -> Tensor:
        """Returns the mean loss of a batch.

        Args:
            logits: Float32 [N, classes].
            labels: Int64 [N], or the probability of every class, float32 [N, classes].
            images: Float32 [N, 3, H, W], which the teacher gets.

        Raises:
            ArgumentError: The teacher has other classes.
        """
        loss = self.cross_entropy(logits, labels)
        if self.teacher is None:
            return loss
        with torch.no_grad():
            answers = self.teacher(images).float()
        if answers.shape != logits.shape:
            raise ArgumentError(
                f"The teacher tells {answers.shape[1]} classes apart, the model {logits.shape[1]}."
            )
        t = self.temperature
        distance = kl_div(
            log_softmax(logits / t, 1), log_softmax(answers / t, 1),
            reduction="batchmean", log_target=True,
        )  # fmt: skip
        return (1 - self.share) * loss + self.share * t * t * distance


#: The --teacher that means the float model that training starts from.
SELF = "self"


def make_loss(options: LossOptions, data: Prepared, own: nn.Module | None = None) -> Loss:
    """Makes the loss that the options say.

    Args:
        options: The options.
        data: The data, whose classes the teacher must have.
        own: The float model that `--teacher self` means; it is copied.

    Raises:
        ArgumentError: The teacher tells other classes apart.
        ArtifactError: The teacher's file is missing or damaged.
    """
    if options.teacher is None:
        return Loss(options.label_smoothing)
    if options.teacher == SELF:
        if own is None:
            raise ArgumentError("--teacher self is for training from a float model: name a file.")
        teacher = copy.deepcopy(own)
    else:
        teacher = load_float(Path(options.teacher))
    known = class_names(model_info(teacher).classes)
    if len(known or data.classes) != len(data.classes):
        raise ArgumentError(
            f"--teacher {options.teacher} has another number of classes than {data.data.name}."
        )
    if options.teacher != SELF and not same_names(known, data.classes):
        raise ArgumentError(
            f"--teacher {options.teacher} tells other classes apart than {data.data.name} has."
        )
    share, temperature = options.teacher_share, options.teacher_temperature
    return Loss(options.label_smoothing, teacher, share, temperature)
