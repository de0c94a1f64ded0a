"""Runs qzoo's commands, and others of click's, in this process."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from qzoo.cli import main


@contextmanager
def untouched_process() -> Iterator[None]:
    """Undoes what a script sets for its process: threads and random states."""
    threads = torch.get_num_threads()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


def call_command(command: click.Command, program: str, *words: object) -> Result:
    """Runs a command as if from the command line."""
    arguments = [str(word) for word in words]
    with pytest.MonkeyPatch.context() as patch, untouched_process():
        patch.setattr(sys, "argv", [program, *arguments])
        return CliRunner().invoke(command, arguments)


def invoke(*words: object) -> Result:
    """Runs a command of qzoo's; raises what none may end with: anything but an exit code."""
    result = call_command(main, "qzoo", *words)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def run(*words: object) -> tuple[int, str, str]:
    """Runs a command of qzoo's; returns its exit code, stdout and stderr."""
    result = invoke(*words)
    return result.exit_code, result.stdout, result.stderr
