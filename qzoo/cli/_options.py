"""The options that commands share: one name, one help text and one completion for each.

Nothing here imports PyTorch, so that help and completion answer at once; the names of the library's
tables are therefore written out, and tests/cli/test_options.py compares them.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from .._core.option_types import MOST_SEED, MOST_SIZE, MOST_THREADS, Whole
from ..metadata import metadata_folder, read_metadata

Command = TypeVar("Command", bound=Callable[..., Any])
Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]

#: How names of files with weights end.
WEIGHTS_ENDINGS = (".safetensors", ".pth", ".pt", ".ckpt")
BACKENDS = ("fbgemm", "x86", "onednn", "qnnpack")
RECIPES = ("fast", "default", "best", "torchvision")
FLOWS = ("eager", "fx", "pt2e")
RUNTIMES = ("torch", "onnxruntime", "openvino", "inductor", "executorch")
NAMED_DATA = ("digits", "fractals")

DATA_HELP = "digits, fractals, or a folder: with train/ and val/, or with a folder per class."


def _matching(words: Sequence[str], incomplete: str) -> list[CompletionItem]:
    low = incomplete.lower()
    return [CompletionItem(word) for word in words if word.lower().startswith(low)]


def complete_files(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Leaves it to the shell, which knows files best."""
    return [CompletionItem(incomplete, type="file")]


def complete_models(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes the zoo's models or, where none begins like that, files."""
    names = sorted(p.stem for p in metadata_folder().glob("*.json") if p.stem != "schema")
    found = [] if os.sep in incomplete else _matching(names, incomplete)
    return found or [CompletionItem(incomplete, type="file")]


def complete_data(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes the named data sets or, where none begins like that, folders."""
    found = _matching(NAMED_DATA, incomplete)
    return found or [CompletionItem(incomplete, type="dir")]


def complete_weights(
    context: click.Context, _: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Completes the weights of the model that was named before."""
    values = context.params
    # Words before an option that still lacks its value are not sorted into parameters yet.
    words = values.get("words") or values.get("models") or context.args
    model = values.get("model") or next(iter(words), "")
    if not (metadata_folder() / f"{str(model).lower()}.json").is_file():
        return []
    if values.get("as_float") or context.command.name in ("quantize", "tune", "finetune"):
        from ..registry import get_entry  # torchvision itself says which weights there are

        return _matching(list(get_entry(str(model)).float_weights.__members__), incomplete)
    return _matching(["DEFAULT", *read_metadata(str(model).lower())["weights"]], incomplete)


def complete_from(names: Sequence[str]) -> Completer:
    """Returns a completer of fixed words, of which several may stand between commas."""

    def complete(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
        done, comma, last = incomplete.rpartition(",")
        return [CompletionItem(done + comma + item.value) for item in _matching(names, last)]

    return complete


@dataclass(frozen=True)
class Place:
    """Something that a command takes as a word in its place, or by an option.

    Attributes:
        name: The parameter of the command's function.
        metavar: What it is called in help and messages.
        options: Its options; empty where it has only its place.
        help: The options' help.
        complete: Completes it.
        many: Whether it takes all further words; then its value is a tuple.
        required: Whether it must be given.
        missing: What to call it where it is missing; None calls it an argument.
    """

    name: str
    metavar: str
    options: tuple[str, ...] = ()
    help: str = ""
    complete: Completer = complete_files
    many: bool = False
    required: bool = True
    missing: str | None = None


def model_place(help: str = "The model, if it does not stand first.", **fields: Any) -> Place:
    """Returns the place of MODEL, which `-m` and `--model` give too."""
    return Place("model", "MODEL", ("--model", "-m"), help, complete_models, **fields)


def data_place(help: str = DATA_HELP, metavar: str = "DATA") -> Place:
    """Returns the place of DATA, which `--data` gives too."""
    missing = f"option '--data' (or {metavar} in its place)"
    return Place("data", metavar, ("--data",), help, complete_data, missing=missing)


def takes(*places: Place) -> Callable[[Command], Command]:
    """Declares what a command takes in this order; what an option gives needs no word."""

    def complete(
        context: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        words = list(context.params.get("words") or ())
        for place in _open_places(places, context.params):
            if not words or place.many:
                return place.complete(context, param, incomplete)
            words.pop(0)
        return []

    def declare(function: Command) -> Command:
        @functools.wraps(function)
        def run(words: tuple[str, ...], **values: Any) -> Any:
            placed = _placed(places, words, values)
            return function(**values, **placed)

        decorated: Any = run
        for place in reversed(places):
            if place.options:
                decorated = click.option(
                    *place.options,
                    place.name,
                    multiple=place.many,
                    help=place.help,
                    metavar=place.metavar,
                    shell_complete=place.complete,
                )(decorated)
        usage = " ".join(
            f"{p.metavar}..." if p.many else p.metavar if p.required else f"[{p.metavar}]"
            for p in places
        )
        return click.argument("words", nargs=-1, metavar=usage, shell_complete=complete)(decorated)

    return declare


def _open_places(places: Sequence[Place], values: dict[str, Any]) -> list[Place]:
    return [place for place in places if place.many or not values.get(place.name)]


def _placed(
    places: Sequence[Place], words: tuple[str, ...], values: dict[str, Any]
) -> dict[str, Any]:
    """Returns the values of all places, taking them out of what the options gave."""
    waiting = list(words)
    found: dict[str, Any] = {}
    for place in places:
        given = values.pop(place.name, None)
        if given is not None and "architecture" in values and _is_file_of(place, waiting):
            # The file has its place, so that --model says which model its weights are of.
            if values["architecture"] is not None:
                raise click.UsageError("Give --model or --arch, not both.")
            values["architecture"], given = given, waiting.pop(0)
        if place.many:
            given, waiting = (*(given or ()), *waiting), []
        elif given is None and waiting:
            given = waiting.pop(0)
        if place.required and not given:
            or_option = f" (or option '{place.options[0]}')" if place.options else ""
            raise click.UsageError(
                "Missing " + (place.missing or f"argument '{place.metavar}'{or_option}") + "."
            )
        found[place.name] = given
    if waiting:
        what = " ".join(place.metavar for place in places)
        raise click.UsageError(f"Too many words: {waiting[0]!r} comes after {what}.")
    return found


def _is_file_of(place: Place, waiting: Sequence[str]) -> bool:
    if "--model" not in place.options or not waiting:
        return False
    path = Path(waiting[0])
    return path.suffix in WEIGHTS_ENDINGS or path.is_file()


def state_dict_options(*spellings: str) -> Callable[[Command], Command]:
    """Declares what may have to be said of a state dict, and hands it on as the dict `told`.

    Args:
        *spellings: Of `--arch`, in a command whose model has no option `--model`.
    """
    help = "Which model a file of mere weights (a state dict) is of"
    if not spellings:
        help += "; --model, beside a file, says the same"
    architecture_option = click.option(
        "--arch",
        *spellings,
        "architecture",
        metavar="NAME",
        help=f"{help}.  [default: told from their names and shapes]",
        shell_complete=complete_models,
    )

    def declare(function: Command) -> Command:
        @functools.wraps(function)
        def run(
            architecture: str | None, part: str | None, transform_input: bool | None, **values: Any
        ) -> Any:
            told = {"model": architecture, "part": part, "transform_input": transform_input}
            return function(told={k: v for k, v in told.items() if v is not None}, **values)

        decorated: Any = run
        for option in (transform_input_option, part_option, architecture_option):
            decorated = option(decorated)
        return decorated

    return declare


def choice(names: Sequence[str]) -> click.Choice:
    """Returns the type of an option with a few fixed values, in any case."""
    return click.Choice(list(names), case_sensitive=False)


def model_option(default: str, help: str) -> Callable[[Command], Command]:
    """Declares `-m/--model` of a command whose words are something else."""
    return click.option(
        "--model", "-m", default=default, show_default=True, help=help,
        shell_complete=complete_models,
    )  # fmt: skip


def weights_option(
    help: str = "Which int8 weights of MODEL, where that is a name (see: qzoo info MODEL).",
) -> Callable[[Command], Command]:
    """Declares `-w/--weights`; None says that nobody named any."""
    return click.option(
        "--weights",
        "-w",
        help=f"{help}  [default: DEFAULT]",
        shell_complete=complete_weights,
    )


backend_option = click.option(
    "--backend",
    type=choice(BACKENDS),
    help="Numbers to quantize for: qnnpack for phones, x86 or fbgemm for CPUs without VNNI.  "
    "[default: onednn or, without VNNI, x86]",
)
engine_option = click.option(
    "--backend",
    help="Engine of PyTorch that runs the model: fbgemm, x86, onednn or qnnpack.  "
    "[default: the model's own]",
    shell_complete=complete_from(BACKENDS),
)
recipe_option = click.option(
    "--recipe",
    type=choice(RECIPES),
    default="default",
    show_default=True,
    help="How much work goes into accuracy; torchvision repeats what its script does.",
)
images_option = click.option(
    "--images", type=Whole(1), help="Pictures to calibrate on.  [default: the recipe's]"
)
seed_option = click.option(
    "--seed",
    type=Whole(0, MOST_SEED),
    default=0,
    show_default=True,
    help="Which pictures are picked; the same seed picks the same.",
)
threads_option = click.option(
    "--threads",
    type=Whole(1, MOST_THREADS),
    help="CPU threads to compute with.  [default: all cores]",
)
size_option = click.option(
    "--size",
    type=Whole(1, MOST_SIZE),
    help="Height and width of the pictures in pixels.  [default: the model's own]",
)
part_option = click.option(
    "--part",
    metavar="KEY",
    help="Key of the state dict in a training checkpoint, such as model_ema or ema.module.  "
    "[default: model, state_dict and the like]",
)
transform_input_option = click.option(
    "--transform-input/--no-transform-input",
    default=None,
    help="Whether the GoogLeNet or Inception of a state dict changes its input's normalization; "
    "those that descend from torchvision's pretrained weights do.",
)
all_pictures_option = click.option(
    "--all-pictures",
    is_flag=True,
    help="Measure also on pictures that the model was trained or calibrated on.",
)
html_option = click.option(
    "--html", type=click.Path(path_type=Path), help="Also write a report, one HTML page, here."
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON on stdout, for programs."
)


def keep_float_option(where: str = "") -> Callable[[Command], Command]:
    """Declares `--keep-float`."""
    return click.option(
        "--keep-float",
        multiple=True,
        metavar="PATTERN",
        help=f"Layers whose weights stay float{where}, such as fc or 'layer4.*'; may be repeated.",
    )


def out_option(
    help: str = "File to write, ending in .safetensors.", required: bool = False
) -> Callable[[Command], Command]:
    """Declares `-o/--out`."""
    return click.option(
        "--out", "-o", required=required, type=click.Path(path_type=Path), help=help
    )


def batch_size_option(
    default: int | str | None, help: str, **fields: Any
) -> Callable[[Command], Command]:
    """Declares `-b/--batch-size`, which may be written `--batch`."""
    fields = {"type": Whole(1), "show_default": default is not None, **fields}
    return click.option(
        "--batch-size", "--batch", "-b", "batch_size", default=default, help=help, **fields
    )
