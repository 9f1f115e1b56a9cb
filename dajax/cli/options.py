"""Settings dataclasses of the library, as options of a command."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from dajax.images.pixels import ValueRange

# An option without a value: given or not.
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help_behavior_hint="")]


def unset(metavar: str, hint: str = "", *, aliases: tuple[str, ...] = (), name: str | None = None) -> Any:
    """Return what tyro shows for an option that has no value unless one is given.

    Args:
        metavar: the name of its value.
        hint: what holds while it is not given, where the option's text does not say it.
        aliases: Short names of the option.
        name: the name of the option, where it is not that of the field.
    """
    return tyro.conf.arg(
        metavar=metavar, help_behavior_hint=f"(default: {hint})" if hint else "", aliases=aliases, name=name
    )


def value_of(kind: Callable[[str], Any], *, choices: tuple[str, ...] | None = None) -> Any:
    """Return how tyro reads an option whose value is of a type, or None where it is not given.

    tyro itself would take the word None for a value, and its message about a wrong one would speak of Python's types.

    Args:
        kind: int, float, str or Path.
        choices: all values that there are.
    """
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="VALUE",
        instance_from_str=lambda texts: _read(kind, texts[0]),
        is_instance=lambda value: True,
        str_from_instance=lambda value: ["" if value is None else str(value)],
        choices=choices,
    )


def value_range(text: str) -> ValueRange:
    """Return the value of --value-range: "auto", or two numbers with a comma between them.

    Raises:
        ValueError: the text is neither, or the first number is not the smaller one.
    """
    if text == "auto":
        return "auto"
    low, high = (float(part) for part in text.split(","))
    if not low < high:
        raise ValueError
    return low, high


def _read(kind: Callable[[str], Any], text: str) -> Any:
    try:
        return kind(text)
    except ValueError as error:
        known: dict[Any, str] = {
            int: "a whole number",
            float: "a number",
            value_range: "auto or two numbers LO,HI, the smaller first",
        }
        expected = known.get(kind, "another value")
        raise ValueError(f"expected {expected}, got {text!r}") from error


def settings_options(
    settings: type,
    *,
    metavars: Mapping[str, str],
    unset_hints: Mapping[str, str] | None = None,
    names: Mapping[str, str] | None = None,
    types: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> type:
    """Return a subclass of a settings dataclass that tyro reads: the fields, with what only a command line needs.

    Args:
        settings: the dataclass. The first sentences of its attributes' descriptions describe the options.
        metavars: the names of values in the help, by field.
        unset_hints: what holds where an option with the default None is not given, by field, if the dataclass does not
            say it.
        names: options that are not named after their field.
        types: Narrower types than the fields have.
        defaults: Other defaults than the fields have.
    """
    unset_hints, names, types, defaults = unset_hints or {}, names or {}, types or {}, defaults or {}
    hints = {**get_type_hints(settings), **types}
    texts = _first_sentences(settings)
    made = []
    for field in dataclasses.fields(settings):
        name, kind = field.name, hints[field.name]
        metadata: list[Any] = []
        inner = _without_none(kind)
        if inner is not None:
            choices = get_args(inner) if get_origin(inner) is Literal else None
            if choices or inner in (int, float, str):
                metadata.append(value_of(str if choices else inner, choices=choices))
            hint: str | None = f"(default: {unset_hints[name]})" if name in unset_hints else ""
        else:
            hint = f"(default: {unset_hints[name]})" if name in unset_hints else None
        if kind is bool and not defaults.get(name, field.default):
            hint = ""
            metadata.append(tyro.conf.FlagCreatePairsOff)
        metadata.append(
            tyro.conf.arg(metavar=metavars.get(name), name=names.get(name), help=texts[name], help_behavior_hint=hint)
        )
        default = dataclasses.field(default=defaults.get(name, field.default))
        made.append((name, Annotated[(kind, *metadata)], default))
    return dataclasses.make_dataclass(settings.__name__, made, bases=(settings,), frozen=True)


def _first_sentences(settings: type) -> dict[str, str]:
    """Return the first sentence of what a docstring says of each attribute."""
    entries = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", inspect.getdoc(settings) or "", re.MULTILINE)
    return {name: re.split(r"(?<=\.) (?=[A-Z])", " ".join(text.split()))[0] for name, text in entries}


def _without_none(kind: Any) -> Any:
    """Return T of `T | None`, and None for any other type."""
    if get_origin(kind) not in (Union, UnionType) or type(None) not in get_args(kind):
        return None
    return next(part for part in get_args(kind) if part is not type(None))
