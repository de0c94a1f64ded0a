"""Runs several of qzoo's commands in one process, which may lack PyTorch; imports none itself.

As a script it reads a JSON list of commands on its command line, and prints a JSON list of what
each gave: [exit code, stdout, stderr]. The last item are the heavy modules that were imported.
"""

from __future__ import annotations

import json
import sys

from click.testing import CliRunner

from qzoo.cli import main

HEAVY = (
    *("torch", "torchvision", "torchao", "huggingface_hub", "httpx", "sklearn", "scipy"),
    "PIL.PdfImagePlugin",
)


def run_all(commands: list[list[str]]) -> list[list[object]]:
    """Runs commands one after the other; what is no exit ends the process."""
    results: list[list[object]] = []
    for words in commands:
        result = CliRunner().invoke(main, words)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        results.append([result.exit_code, result.stdout, result.stderr])
    return results


if __name__ == "__main__":
    answers = run_all(json.loads(sys.argv[1]))
    print(json.dumps([*answers, [name for name in HEAVY if name in sys.modules]]))
