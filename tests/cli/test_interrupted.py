"""Ctrl-C ends a command without a traceback, whatever it is doing."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

#: Runs `qzoo ARGUMENTS`, and sends itself what Ctrl-C sends when a module is about to be imported.
INTERRUPTED = """
    import os, signal, sys

    # Whoever starts the tests in the background has their processes ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    class Interrupt:
        when = sys.argv.pop(1)

        def find_spec(self, name, path=None, target=None):
            if name == self.when:
                os.kill(os.getpid(), signal.SIGINT)

    from qzoo.__main__ import main
    sys.meta_path.insert(0, Interrupt())
    main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send")
@pytest.mark.parametrize(
    ("when", "arguments"),
    [
        ("click", ["--help"]),
        ("PIL", ["classify", "none.png", "--model", "resnet18"]),
        ("torch", ["evaluate", "resnet18", "digits"]),
        pytest.param("qzoo.models.shufflenetv2", ["demo"], marks=pytest.mark.extended),
        pytest.param("qzoo._core.timing", ["demo", "--json"], marks=pytest.mark.extended),
    ],
)
def test_while_it_starts(when: str, arguments: list[str]) -> None:
    code = textwrap.dedent(INTERRUPTED)
    done = subprocess.run(
        [sys.executable, "-c", code, when, *arguments], capture_output=True, text=True
    )
    assert done.returncode == 130, done.stderr
    assert done.stdout == "" and "Traceback" not in done.stderr
    assert done.stderr in ("", "Interrupted.\n")
