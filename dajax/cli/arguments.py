"""A command's arguments: read by tyro, with short messages about what is wrong with them."""

from __future__ import annotations

import inspect
import io
import re
import shutil
import textwrap
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from difflib import get_close_matches
from functools import partial
from typing import Any, get_type_hints

# Help is read in columns; a line of text that is longer than this is hard to follow.
_MOST_COLUMNS = 100


class UsageError(Exception):
    """The command line is wrong: the message says where, and what to do instead."""


def read_arguments(name: str, command: Callable[..., int], arguments: Sequence[str]) -> Callable[[], int]:
    """Return the command with its arguments, ready to be called.

    Args:
        name: the name of the command, such as "predict".
        command: its function; tyro makes the options from its signature and the texts from its docstring.
        arguments: what follows the name of the command.

    Raises:
        UsageError: the arguments are not those of this command.
        SystemExit: Help was asked for and has been printed.
    """
    import tyro

    def later(*values: Any, **options: Any) -> Callable[[], int]:
        return partial(command, *values, **options)

    later.__signature__ = inspect.signature(command)  # type: ignore[attr-defined]
    later.__annotations__ = get_type_hints(command, include_extras=True)
    # tyro would keep the docstring's line breaks.
    later.__doc__ = re.sub(r"\n {8}", " ", inspect.getdoc(command) or "")
    parse: Callable[..., Any] = partial(
        tyro.cli,
        later,
        prog=f"dajax {name}",
        description="",
        return_unknown_args=True,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    before_dashes = list(arguments)[: list(arguments).index("--")] if "--" in arguments else list(arguments)
    if {"-h", "--help"} & set(before_dashes):
        print(f"{_description(command)}\n")
        parse(args=["--help"])
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            ready, unknown = parse(args=arguments)
    except SystemExit:
        # A mistyped option explains whatever tyro has noticed first.
        known = _options(parse)
        for argument in before_dashes:
            if argument.startswith("--") and argument != "--" and _plain(argument) not in known:
                raise UsageError(_unknown(name, argument, known)) from None
        raise UsageError(f"{_shortened(said.getvalue())}. {_see_help(name)}") from None
    if unknown:
        raise UsageError(_unknown(name, unknown[0], _options(parse)))
    found: Callable[[], int] = ready
    return found


def similar(name: str, names: Sequence[str]) -> str:
    """Return " Did you mean ...?" with the name that is most like the given one, or nothing."""
    near = get_close_matches(name, names, 1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _unknown(name: str, argument: str, options: Sequence[str]) -> str:
    if argument.startswith("-"):
        option = _plain(argument)
        hint = similar(option, options)
        if not argument.startswith("--"):
            hint = " Put -- before a name that begins with a dash."
        return f"there is no option {option}.{hint} {_see_help(name)}"
    return f"{argument!r} is one argument too many. {_see_help(name)}"


def _plain(argument: str) -> str:
    """Return the option as tyro takes it: without a value, and with dashes for underscores."""
    return argument.partition("=")[0].replace("_", "-")


def _see_help(name: str) -> str:
    return f"See: dajax {name} --help"


def _options(parse: Callable[..., Any]) -> list[str]:
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            parse(args=["--help"])
    except SystemExit:
        pass
    return sorted(set(re.findall(r"(?<![\w-])--[a-z][\w-]*", said.getvalue())))


def _shortened(said: str) -> str:
    """Return the sentence of what tyro has put into a box."""
    # A title, what is wrong, a rule, more. Where the output has no Unicode, a rule follows the title as well.
    is_rule = re.compile(r"[│─╰╯ -]{9,}").fullmatch
    inside = said.splitlines()[1:]
    if inside and is_rule(inside[0]):
        del inside[0]
    rule = next((place for place, line in enumerate(inside) if is_rule(line)), len(inside))
    lines = [stripped for line in inside[:rule] if (stripped := line.strip("│ "))]
    names = [line for line in lines[1:] if re.fullmatch(r"[A-Z]+(\.\.\.)?", line)]
    if lines and lines[0].startswith("Missing from"):
        return f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} missing"
    return " ".join(lines).rstrip(".")


def _description(command: Callable[..., int]) -> str:
    """Return what the docstring says of the command, its example first, in lines that fit the terminal."""
    text = (inspect.getdoc(command) or "").partition("\nArgs:")[0]
    paragraphs = sorted(text.strip().split("\n\n"), key=lambda paragraph: not paragraph.startswith("Example: "))
    width = min(shutil.get_terminal_size().columns, _MOST_COLUMNS)
    return "\n\n".join(textwrap.fill(" ".join(p.split()), width, break_on_hyphens=False) for p in paragraphs)
