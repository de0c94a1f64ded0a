"""Groups of options: frozen dataclasses whose fields also say how the command line takes them.

A field names its default, its range and its help once. From it come the check of its value, the
option of the scripts, and whether a resumed run must have the same value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field
from typing import Any, ClassVar, TypeVar

import click

from ..errors import ArgumentError

F = TypeVar("F", bound=Callable[..., Any])
O = TypeVar("O", bound="Options")  # noqa: E741


def option(
    default: Any,
    *flags: str,
    type: click.ParamType = click.STRING,
    decisive: bool = True,
    **settings: Any,
) -> Any:
    """Declares an option as a field of a group.

    Args:
        default: Its default value: False makes it a flag, a tuple an option that may be repeated.
            None is a value of the option only where it is the default.
        flags: Other names than that of the field, such as "-b".
        type: What checks and converts values.
        decisive: Whether it changes the weights, so that a resumed run must have the same; it has
            no say where its group has none.
        settings: More of click's settings, such as `help`.
    """
    settings |= {"is_flag": True} if default is False else {"type": type}
    if default == ():
        settings["multiple"] = True
    metadata = {"flags": flags, "type": type, "decisive": decisive, "click": settings}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Options:
    """A group of options, or a group of such groups.

    Attributes:
        DECISIVE: Whether any option of the group changes the weights.

    Raises:
        ArgumentError: A value that an option does not take.
    """

    DECISIVE: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Checks and converts every value once."""
        for field in dataclasses.fields(self):
            if field.metadata:
                object.__setattr__(self, field.name, _checked(field, getattr(self, field.name)))

    @classmethod
    def of(cls: type[O], values: Mapping[str, Any]) -> O:
        """Makes a group of the values of all options by name; what is not of it is left alone."""
        own = {}
        for field in dataclasses.fields(cls):
            if group := _group(field):
                own[field.name] = group.of(values)
            elif field.name in values:
                own[field.name] = values[field.name]
        return cls(**own)

    def changed(self: O, **values: Any) -> O:
        """Returns the group with other values of some options, also of the groups in it.

        Raises:
            TypeError: There is no such option.
        """
        _check_names(type(self), values)
        return type(self).of({**self.values(), **values})

    def values(self) -> dict[str, Any]:
        """Returns the values of all options by name, without the groups that they are in."""
        found: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            found |= value.values() if isinstance(value, Options) else {field.name: value}
        return found

    def settings(self) -> dict[str, Any]:
        """Returns the values of the decisive options, as a checkpoint records them."""
        found: dict[str, Any] = {}
        for field in dataclasses.fields(self) if self.DECISIVE else ():
            value = getattr(self, field.name)
            if isinstance(value, Options):
                found |= value.settings()
            elif field.metadata and field.metadata["decisive"]:
                found[field.name] = list(value) if isinstance(value, tuple) else value
        return found


def click_options(group: type[Options], **defaults: Any) -> Callable[[F], F]:
    """Returns a decorator that gives a command the options of a group.

    Args:
        group: The group.
        defaults: Other default values than those of the fields, by name.

    Raises:
        TypeError: There is no such option.
    """
    _check_names(group, defaults)

    def decorate(function: F) -> F:
        for field in reversed([f for f in _fields(group) if f.metadata]):
            flags, settings = field.metadata["flags"], field.metadata["click"]
            names = (*flags, f"--{field.name.replace('_', '-')}", field.name)
            default = defaults.get(field.name, field.default)
            function = click.option(*names, default=default, **settings)(function)
        return function

    return decorate


def _fields(group: type[Options]) -> Iterator[Field[Any]]:
    """Yields the fields of a group and of the groups in it."""
    for field in dataclasses.fields(group):
        inner = _group(field)
        yield from _fields(inner) if inner else (field,)


def _group(field: Field[Any]) -> type[Options] | None:
    """Returns the group that a field holds, or None where it holds a value."""
    made = field.default_factory
    return made if isinstance(made, type) and issubclass(made, Options) else None


def _check_names(group: type[Options], values: Mapping[str, Any]) -> None:
    if unknown := sorted(set(values) - {f.name for f in _fields(group)}):
        raise TypeError(f"There are no options {unknown}.")


def _checked(field: Field[Any], value: Any) -> Any:
    """Returns a field's value in its own type."""
    if value is None and field.default is None:
        return None
    if field.default is False and isinstance(value, bool):
        return value
    try:
        if field.default == () and isinstance(value, (list, tuple)):
            return tuple(click.STRING.convert(v, None, None) for v in value)
        if value is None or field.default is False or field.default == ():
            raise click.BadParameter(f"it cannot be {value!r}.")
        return field.metadata["type"].convert(value, None, None)
    except click.BadParameter as error:
        name = field.name.replace("_", "-")
        raise ArgumentError(f"--{name}: {error.message}") from None
