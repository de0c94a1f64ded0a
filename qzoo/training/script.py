"""What every reference script needs: error reports, its own command, the environment."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import click
import torch
from tqdm import tqdm

from .._core.versions import package_versions
from ..errors import ArgumentError, QzooError
from ..safe_text import terminal_text


class Failure(click.ClickException):
    """An expected error that ends a script: one sentence on stderr, exit code 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        """Prints the sentence; in a run of several processes, with this process's number."""
        tell(f"Error: {self.format_message()}")


class Command(click.Command):
    """A command whose expected errors are one sentence on stderr and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except (QzooError, OSError) as error:
            raise Failure(one_sentence(error)) from None


def one_sentence(error: BaseException) -> str:
    """Returns an error's message in one line."""
    text = str(error)
    # What fails in a worker of a DataLoader comes with the worker's traceback before the message.
    if text.startswith("Caught ") and "Traceback (most recent call last)" in text:
        _, _, text = text.rpartition(f"{type(error).__name__}: ")
    return " ".join(text.split())


def say(line: str) -> None:
    """Prints a line of results on stdout; of several processes, only the first one does."""
    if rank() == 0:
        tqdm.write(terminal_text(line, sys.stdout))


def tell(line: str) -> None:
    """Prints a line about the run on stderr; processes other than the first one give their rank."""
    line = line if rank() == 0 else f"[rank {rank()}] {line}"
    click.echo(terminal_text(line, sys.stderr), err=True)


def rank() -> int:
    """Returns this process's number among those that `torchrun` started; 0 without it."""
    try:
        return environment_count("RANK", 0)
    except ArgumentError:  # which `joined` says; here it would keep the error from being printed
        return 0


def environment_count(name: str, default: int) -> int:
    """Returns a number that `torchrun` puts into the environment; `default` without it.

    Raises:
        ArgumentError: It is no whole number, or below 0.
    """
    text = os.environ.get(name, str(default))
    if re.fullmatch(r"[0-9]{1,9}", text.strip()) is None:
        raise ArgumentError(
            f"The environment variable {name} must be a whole number, as torchrun sets it, but it "
            f"is {text[:40]!r}: unset it."
        )
    return int(text)


def command_line(script: str) -> str:
    """Returns the command that is running, as one would type it.

    Args:
        script: A file of references/, run from the repository's root, or "qzoo" for the command.
    """
    if not script.endswith(".py"):
        return shlex.join([script, *sys.argv[1:]])
    processes = environment_count("WORLD_SIZE", 1)
    start = f"torchrun --nproc_per_node {processes}" if processes > 1 else "python"
    return f"{start} references/{script} {shlex.join(sys.argv[1:])}"


def environment() -> dict[str, str | int]:
    """Returns what a figure may depend on besides its command; the columns of results files."""
    return {
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        **package_versions(),
    }


def mib(path: Path) -> float:
    """Returns a file's size in MiB, rounded to three digits as metadata holds it."""
    return round(path.stat().st_size / 2**20, 3)
