"""How tests call reference scripts and Python, and what they expect of them."""

from __future__ import annotations

import csv
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result

from tests.helpers.commands import call_command
from tests.helpers.places import REFERENCES


def python(
    *words: object, cwd: Path | None = None, timeout: float = 280, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs this Python in a process of its own, on one thread, and requires that it does well."""
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done


def call(script: str, *options: object) -> Result:
    """Runs a script as if from the command line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REFERENCES))
        command = importlib.import_module(script).main
        return call_command(command, f"{script}.py", *options)


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
