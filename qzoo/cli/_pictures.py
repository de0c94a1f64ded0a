"""How commands measure accuracy: on pictures that the models have not seen, with intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._output import print_line, print_warning

if TYPE_CHECKING:
    from torch import nn

    from ..datasets.evaluate import Metrics
    from ..datasets.sources import Data
    from ..datasets.unseen import Sighting


def pictures_to_measure(
    data: Data, *models: nn.Module, everything: bool | None = None, labelled: bool = False
) -> tuple[Any, Sighting]:
    """Returns what `measured_part` does, and says on stderr what is odd about the pictures.

    Args:
        data: Where they come from.
        *models: Whose notes of what they have seen count; the first one's transforms and classes.
        everything: Whether to take also what the models have seen; None for a command that has no
            option for that.
        labelled: Whether figures need labels.

    Returns:
        A data set of pictures and labels, of pictures alone where the data has no labels; and which
        of them the models have seen.

    Raises:
        ArgumentError: The data and the model do not belong together, or the data has no labels.
    """
    from ..datasets.unseen import measured_part

    chosen, sighting = measured_part(data, models, everything=bool(everything), labelled=labelled)
    words, serious = sighting.words()
    if serious:
        print_warning(words)
    elif words:
        hint = "" if everything is None else " (--all-pictures measures on all.)"
        print_line(words + hint, err=True)
    return chosen, sighting


def figures(metrics: Metrics) -> dict[str, Any]:
    """Returns accuracies and their 95 % intervals in percent, as JSON values."""
    found: dict[str, Any] = {"n": metrics.n}
    for k in metrics.correct:
        low, high = metrics.interval(k)
        found[f"top{k}"] = round(metrics.accuracy(k), 3)
        found[f"top{k}_low"], found[f"top{k}_high"] = round(low, 3), round(high, 3)
    return found


def sentence(metrics: Metrics) -> str:
    """Returns accuracies and their 95 % intervals in one line."""
    parts = []
    for k in metrics.correct:
        low, high = metrics.interval(k)
        parts.append(f"top-{k} {metrics.accuracy(k):.2f} % ({low:.2f} to {high:.2f})")
    return f"{', '.join(parts)} on {metrics.n} images"
