"""Runs qzoo's commands in this process."""

from __future__ import annotations

from click.testing import CliRunner, Result

from qzoo.cli import main


def invoke(*words: object) -> Result:
    """Runs a command; raises what no command may end with: anything but an exit code."""
    result = CliRunner().invoke(main, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def run(*words: object) -> tuple[int, str, str]:
    """Runs a command; returns its exit code, stdout and stderr."""
    result = invoke(*words)
    return result.exit_code, result.stdout, result.stderr
