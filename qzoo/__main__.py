"""`python -m qzoo` is the `qzoo` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line; Ctrl-C ends it without a traceback even while that is imported."""
    try:
        from .cli import main as command

        command()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
