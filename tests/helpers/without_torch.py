"""Python code and qzoo's commands in a process in which PyTorch is not installed.

Where it is, the process and its children do not find it: `import torch` (torchvision, torchao,
executorch) fails as if it were missing. Importing this file needs no PyTorch either.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.helpers.places import HIDDEN_TORCH, ROOT


def python(code: str, *words: object, cwd: Path | None = None, **environment: str) -> str:
    """Runs code, which finds `words` in sys.argv[1:]; returns what it printed.

    Raises:
        AssertionError: It failed; the message is what it wrote to stderr.
    """
    return _run(["-c", code, *map(str, words)], 0, cwd, environment).stdout


def qzoo(*words: object, exit_code: int = 0, cwd: Path | None = None, **environment: str) -> str:
    """Runs a command of qzoo's; returns its stdout, or its stderr where it should fail.

    Raises:
        AssertionError: It ended with another exit code, or with a traceback.
    """
    done = _run(["-m", "qzoo", *map(str, words)], exit_code, cwd, environment)
    return done.stderr if exit_code else done.stdout


def _run(
    words: list[str], exit_code: int, cwd: Path | None, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    inherited = os.environ.get("PYTHONPATH")
    path = [str(HIDDEN_TORCH), str(ROOT), *([inherited] if inherited else [])]
    done = subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=280,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            **environment,
            "PYTHONPATH": os.pathsep.join(path),
        },
    )
    assert done.returncode == exit_code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done
