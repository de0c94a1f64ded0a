"""How tests call reference scripts in this process, and what they expect of them."""

from __future__ import annotations

import csv
import importlib
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from tests.helpers.places import REFERENCES


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


def call(script: str, *options: object) -> Result:
    """Runs a script as if from the command line."""
    words = list(map(str, options))
    with pytest.MonkeyPatch.context() as patch, untouched_process():
        patch.syspath_prepend(str(REFERENCES))
        patch.setattr(sys, "argv", [f"{script}.py", *words])
        return CliRunner().invoke(importlib.import_module(script).main, words)


def succeed(script: str, *options: object) -> str:
    """Runs a script that should succeed; returns what it printed."""
    done = call(script, *options)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def fail(script: str, *options: object) -> str:
    """Runs into an expected error and returns its one sentence."""
    done = call(script, *options)
    assert done.exit_code == 2, (done.output, done.exception)
    assert "Traceback" not in done.output
    lines = [line for line in done.output.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, done.output
    return lines[0]


def rows(path: Path) -> list[dict[str, str]]:
    """Reads a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
