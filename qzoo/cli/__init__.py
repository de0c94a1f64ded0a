"""The `qzoo` command."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import click

from .._core.optional import without_torch
from .._version import __version__
from ..errors import QzooError
from ..safe_text import printable
from . import (
    analyze,
    benchmark,
    classify,
    evaluate,
    export,
    files,
    finetune,
    listing,
    quantize,
    tune,
)
from ._output import any_text, print_error, print_line, print_warning


class _Group(click.Group):
    """Turns qzoo's errors into one sentence on stderr and exit code 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        with any_text():
            return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except QzooError as error:
            print_error(error)
            sys.exit(2)
        except ModuleNotFoundError as error:
            if (missing := without_torch(error, f"qzoo {ctx.invoked_subcommand}")) is None:
                raise
            print_error(missing)
            sys.exit(2)
        except click.ClickException as error:  # it quotes what was typed, such as a file's name
            error.message = printable(error.message)  # type: ignore[misc]
            raise
        except KeyboardInterrupt:
            print_line("Interrupted.", err=True)
            sys.exit(130)
        except BrokenPipeError:  # the reader (head, less) has seen enough
            sys.stderr.close()
            sys.exit(0)


def _show_warning(message: Any, *args: Any, **kwargs: Any) -> None:
    print_warning(message)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="qzoo")
def main() -> None:
    """A zoo of quantized image-classification models for PyTorch.

    \b
    Examples:
      qzoo demo
      qzoo list "resnet*"
      qzoo classify photo.jpg --model resnet50

    \b
    Completion of models, weights, files and options with the Tab key:
      bash:  eval "$(_QZOO_COMPLETE=bash_source qzoo)"
      zsh:   eval "$(_QZOO_COMPLETE=zsh_source qzoo)"
      fish:  _QZOO_COMPLETE=fish_source qzoo | source
    """
    warnings.showwarning = _show_warning


for _command in (
    *(listing.list_command, listing.info, classify.classify, classify.demo, finetune.finetune),
    *(quantize.quantize, evaluate.evaluate, analyze.analyze_command, tune.tune_command),
    *(benchmark.benchmark, export.export, files.convert, files.download, files.verify),
    *(files.push, files.cache),
):
    main.add_command(_command)
