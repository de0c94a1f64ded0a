"""Measuring on pictures that a model has not seen, and saying so where it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..artifact.seen import CALIBRATION, KINDS, TRAINING, Notes, files_of, hashes
from ..errors import ArgumentError
from ..native.model import model_info
from ..transforms import ImageClassification
from .holdout import Part
from .sources import Data, Relabelled


@dataclass(frozen=True)
class Sighting:
    """Which of some pictures a model has seen.

    Attributes:
        total: Number of pictures that there are.
        measured: Number of those that it is measured on.
        seen: "training" and "calibration" to how many of the measured ones it has seen for that;
            a kind of which nothing was noted is missing.
        left_out: The same for the pictures that it is not measured on.
    """

    total: int
    measured: int
    seen: dict[str, int]
    left_out: dict[str, int]

    def to_dict(self) -> dict[str, int | None]:
        """Returns the figures as JSON values; what nobody noted is None."""
        found: dict[str, int | None] = {f"seen_in_{kind}": self.seen.get(kind) for kind in KINDS}
        return {**found, "left_out": self.total - self.measured}

    def words(self) -> tuple[str, bool]:
        """Returns a sentence, empty where there is nothing to say, and whether it is a warning."""
        if seen := _how_often(self.seen):
            return (
                f"the model {seen} of these {self.measured} pictures: of others it will get fewer "
                "right.",
                True,
            )
        if self.measured < self.total:
            return (
                f"Measured on the {self.measured} of {self.total} pictures that the model has not "
                f"seen; it {_how_often(self.left_out)} of the others.",
                False,
            )
        return "", False


def _how_often(counts: Mapping[str, int]) -> str:
    verbs = {TRAINING: "was trained on", CALIBRATION: "was calibrated on"}
    return " and ".join(f"{verbs[kind]} {n}" for kind in KINDS if (n := counts.get(kind)))


def preset_of(model: nn.Module) -> ImageClassification:
    """Returns a model's own evaluation transforms.

    Raises:
        ArgumentError: It carries none.
    """
    stored = model_info(model).transforms
    if stored is None:
        raise ArgumentError(
            "This model carries no evaluation transforms, so pictures cannot be prepared for it: "
            "save it with transforms=qzoo.transforms.ImageClassification(...)."
        )
    return ImageClassification.from_dict(stored)


def measured_part(
    data: Data,
    models: Sequence[nn.Module],
    *,
    everything: bool = False,
    labelled: bool = False,
    progress: bool = True,
) -> tuple[Any, Sighting]:
    """Returns the pictures of data that models are measured on.

    These are the test split's, whatever is in it. Where there is none, they are those that none of
    the models was trained or calibrated on or, where they have seen all, all.

    Args:
        data: Where they come from.
        models: Whose notes of what they have seen count; the first one's transforms and classes.
        everything: Whether to take also what the models have seen.
        labelled: Whether figures need labels.
        progress: Whether to show a progress bar on stderr.

    Returns:
        A data set of pictures and labels, of pictures alone where the data has no labels; and which
        of them the models have seen.

    Raises:
        ArgumentError: The data and the model do not belong together, the data has no labels, or the
            model names no transforms.
    """
    infos = [model_info(model) for model in models]
    held_out = "test" in data.splits
    pictures = data.split("test" if held_out else data.splits[0], preset_of(models[0]))
    if data.classes or labelled:
        pictures = Relabelled(pictures, data.labels_for(infos[0]))
    notes = [info.seen for info in infos]
    return unseen(pictures, notes, everything=held_out or everything, progress=progress)


def unseen(
    pictures: Any,
    notes: Sequence[Mapping[str, str]],
    *,
    everything: bool = False,
    progress: bool = True,
) -> tuple[Any, Sighting]:
    """Returns the pictures that models have not seen.

    Where they have seen all, those that they were not trained on; where there are none of these,
    all. Pictures that are no files count as not seen: a named data set has a split for that.

    Args:
        pictures: A data set.
        notes: What each model has seen (`ModelInfo.seen`).
        everything: Whether to return all pictures in any case.
        progress: Whether to show a progress bar on stderr.

    Returns:
        A data set of pictures as they were given, and what was found out.
    """
    files, total = files_of(pictures), len(pictures)
    kinds = [kind for kind in KINDS if any(kind in seen for seen in notes)]
    if files is None or not kinds:
        return pictures, Sighting(total, total, {}, {})
    known = {kind: Notes(seen.get(kind, "") for seen in notes) for kind in kinds}
    digests = hashes(files, progress=progress)
    sure = [i for i, d in enumerate(digests) if all(n.covers(d) for n in known.values())]
    found = {kind: {i for i in sure if known[kind].has(digests[i])} for kind in kinds}
    seen = set().union(*found.values())
    fresh = [i for i in sure if i not in seen]
    untrained = [i for i in sure if i not in found.get(TRAINING, ())]
    if not everything and seen and (kept := fresh or untrained):
        counts = {kind: len(found[kind].intersection(kept)) for kind in kinds}
        left = {kind: len(found[kind]) - counts[kind] for kind in kinds}
        return Part(pictures, kept), Sighting(total, len(kept), counts, left)
    # Of the pictures that no note is sure of, as many were seen as of the others.
    counts = {k: round(total * len(found[k]) / len(sure)) if sure else 0 for k in kinds}
    return pictures, Sighting(total, total, counts, {})
