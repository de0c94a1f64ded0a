"""How a command is declared: its options are the fields of one frozen dataclass.

    @dataclass(frozen=True)
    class ShowOptions:
        model: str = place("MODEL", "--model", "-m", help="The model, if it does not stand first.")
        topk: int = option("--topk", "-k", type=Whole(1), default=5, help="Guesses per picture.")

    @command(ShowOptions)
    def show(options: ShowOptions) -> None: ...

Each field says how the command line gives its value: by an option, or as a word in its place.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from ._endings import WEIGHTS_ENDINGS

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
Function = Callable[..., Any]
#: Adds to a function what click is to give it under a field's name.
Declaration = Callable[[str, Function], Function]


def complete_files(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Leaves it to the shell, which knows files best."""
    return [CompletionItem(incomplete, type="file")]


@dataclass(frozen=True)
class Place:
    """Something that a command takes as a word in its place, or by an option.

    Attributes:
        metavar: What it is called in help and messages.
        options: Its options; empty where it has only its place.
        help: The options' help.
        complete: Completes it.
        many: Whether it takes all further words; then its value is a tuple.
        required: Whether it must be given.
        missing: What to call it where it is missing; None calls it an argument.
        name: The field's name.
    """

    metavar: str
    options: tuple[str, ...] = ()
    help: str = ""
    complete: Completer = complete_files
    many: bool = False
    required: bool = True
    missing: str | None = None
    name: str = ""


def place(metavar: str, *options: str, **fields: Any) -> Any:
    """Declares a field that a word gives, in the order of the fields; see `Place`."""
    return dataclasses.field(metadata={"place": Place(metavar, options, **fields)})


def option(*flags: str, **attributes: Any) -> Any:
    """Declares a field that an option gives; its default, if any, is shown in help.

    Args:
        *flags: How it is written.
        **attributes: As for `click.option`.
    """
    attributes.setdefault("show_default", attributes.get("default") is not None)
    return declared(lambda name, function: click.option(*flags, name, **attributes)(function))


def argument(**attributes: Any) -> Any:
    """Declares a field that words without a place of their own give, as for `click.argument`."""
    return declared(lambda name, function: click.argument(name, **attributes)(function))


def declared(declaration: Declaration) -> Any:
    """Declares a field in a way of its own."""
    return dataclasses.field(metadata={"declaration": declaration})


def command(options: type[Any], name: str | None = None) -> Callable[[Function], click.Command]:
    """Makes a command of a function of its options.

    Args:
        options: The dataclass of its options.
        name: The command's name; None takes the function's.
    """

    def declare(function: Function) -> click.Command:
        @functools.wraps(function)
        def run(**values: Any) -> None:
            function(options(**values))

        declared: Function = run
        places: list[Place] = []
        for field in reversed(dataclasses.fields(options)):
            if "place" in field.metadata:
                places.insert(0, dataclasses.replace(field.metadata["place"], name=field.name))
            else:
                declared = field.metadata["declaration"](field.name, declared)
        return click.command(name)(_with_places(declared, places) if places else declared)

    return declare


def _with_places(function: Function, places: Sequence[Place]) -> Function:
    """Declares the words that a function takes; what an option gives needs no word."""

    def complete(
        context: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        words = list(context.params.get("words") or ())
        for place in places:
            if place.many or not context.params.get(place.name):
                if not words or place.many:
                    return place.complete(context, param, incomplete)
                words.pop(0)
        return []

    @functools.wraps(function)
    def run(words: tuple[str, ...], **values: Any) -> Any:
        placed = _placed(places, words, values)
        return function(**values, **placed)

    declared: Function = run
    for place in reversed(places):
        if place.options:
            declared = click.option(
                *place.options,
                place.name,
                multiple=place.many,
                help=place.help,
                metavar=place.metavar,
                shell_complete=place.complete,
            )(declared)
    usage = " ".join(
        f"{p.metavar}..." if p.many else p.metavar if p.required else f"[{p.metavar}]"
        for p in places
    )
    return click.argument("words", nargs=-1, metavar=usage, shell_complete=complete)(declared)


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
