"""`python -m qzoo`, and where the command `qzoo` starts."""

import sys


def main() -> None:
    """Runs the command line; Ctrl-C ends it without a traceback even while it is being imported."""
    try:
        from .cli import main as command

        command()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
