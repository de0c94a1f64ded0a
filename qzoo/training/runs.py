"""Folders of runs: a new run gets a new one, and replaces another only with --overwrite."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ArgumentError, ArtifactError
from .checkpoint import CHECKPOINT, read_checkpoint, resume_path, same
from .distributed import Ranks
from .options import OutputOptions
from .script import tell

#: The float weights, in --output-dir.
FLOAT = "model.safetensors"
#: The int8 model.
INT8 = "int8.safetensors"
#: The PTQ result that training with quantization starts from.
START = "ptq.safetensors"
#: The folder of training with quantization that follows float training.
QAT = "qat"
#: Which pictures were trained on and which were held out.
SPLIT = "split.csv"

#: What a run leaves when it has come as far as its first checkpoint.
_RESULTS = (CHECKPOINT, "log.csv", FLOAT, INT8)
#: All that a run may leave.
_TRACES = (*_RESULTS, START, SPLIT, QAT, "curve.png", "tensorboard")


def check_run(options: OutputOptions, ranks: Ranks, names: Sequence[str] | None = None) -> None:
    """Checks, before any work, that the output folder is free for this run.

    Args:
        options: The options.
        ranks: The processes; the first one looks.
        names: The files that must not be there; None takes all that a run leaves.

    Raises:
        ArgumentError: The folder holds another run.
    """
    if not ranks.first or options.test_only or options.overwrite or _goes_on(options):
        return
    output, resume = options.folder, options.resume
    # A run that was stopped before its first checkpoint left no results: --resume auto starts anew.
    names = names or (_RESULTS if resume == "auto" else _TRACES)
    if left := [name for name in names if (output / name).exists()]:
        go_on = (
            f"it has no {CHECKPOINT} to go on from, so name"
            if resume == "auto"
            else "go on with it by --resume, name"
        )
        raise ArgumentError(
            f"{output} holds another run ({', '.join(left)}): {go_on} another folder, or add "
            "--overwrite to replace that run."
        )


def open_run(options: OutputOptions, ranks: Ranks) -> None:
    """Removes what an earlier run left in the output folder, where --overwrite allows that.

    To be called when nothing but the training itself can go wrong any more.
    """
    if ranks.first and options.overwrite and not options.test_only and not _goes_on(options):
        clear(options.folder)
    ranks.barrier()


def _goes_on(options: OutputOptions) -> bool:
    """Whether a run goes on with the one in its output folder."""
    path = resume_path(options.resume, options.folder)
    return path is not None and path.resolve().parent == options.folder.resolve()


def clear(folder: Path) -> None:
    """Removes what a run has left in a folder; other files stay."""
    for name in _TRACES:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def new_folder(base: Path) -> Path:
    """Returns the folder of a new run: `base`, or the next of `base-2`, `base-3` and so on."""
    taken = _series(base)
    if not taken:
        return base
    number = max(taken) + 1
    return base if number == 1 else base.with_name(f"{base.name}-{number}")


def find_run(base: Path, settings: Mapping[str, Any], last: str) -> Path | None:
    """Returns the folder of the run to go on with: one with these settings.

    Of several the newest, and one that has not come to its end before those that have.

    Args:
        base: The folder's name without a number.
        settings: What must be the same.
        last: The name of the file that a run writes at its end.

    Returns:
        A folder; None where there is no run at all.

    Raises:
        ArgumentError: There are runs, but none with these settings.
    """
    fitting, other = [], ""
    for folder in reversed(_series(base).values()):
        path = folder / CHECKPOINT
        if not path.is_file():
            continue
        try:
            stored = read_checkpoint(path)["settings"]
        except ArtifactError as error:
            tell(str(error))
            continue
        odd = [name for name, value in settings.items() if not same(stored.get(name), value)]
        if not odd:
            fitting.append(folder)
        elif not other:
            other = f"{folder} has another {odd[0]}"
    if not fitting and other:
        raise ArgumentError(
            f"No run of {base} has these options ({other}): repeat those of the interrupted run, "
            "or leave --resume out to start anew."
        )
    return next((f for f in fitting if not (f / last).exists()), next(iter(fitting), None))


def _series(base: Path) -> dict[int, Path]:
    """Returns those of `base`, `base-2`, ... by number that exist and are no empty folders."""
    form = re.compile(re.escape(base.name) + r"(?:-(\d{1,9}))?")
    found = {}
    for path in base.parent.iterdir() if base.parent.is_dir() else ():
        match = form.fullmatch(path.name)
        if match and not (path.is_dir() and next(path.iterdir(), None) is None):
            found[int(match[1] or 1)] = path
    return dict(sorted(found.items()))
