"""The command line: thin callers of what a notebook would call.

Exit status: 0 all that was asked was done, 1 it failed, 2 bad usage, 3 partly done (what was left out is listed), 130
interrupted.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

INTERRUPTED = 130
# One line of help for each command. Its module has a function of the same name.
COMMANDS = {
    "predict": "images to coloured depth maps, depth files and point clouds",
    "batch": "very many images, on one machine or several; it can be stopped and goes on",
    "video": "a video to a video of its depth",
    "convert": "a checkpoint from one format to another",
    "train": "train or fine-tune on synthetic scenes",
    "check": "show that this machine computes the depth maps that it should",
    "models": "list the released checkpoints",
}
_HELP = """\
Example: dajax predict room.jpg --model tiny

Depth Anything V2 in JAX: one image in, one depth map out. Version {version}.

usage: dajax COMMAND [OPTIONS]

commands:
{commands}

`dajax COMMAND --help` says how a command is used, `dajax --version` prints the version, and
`dajax --tyro-print-completion bash` (or zsh, tcsh) prints a script with which the shell completes commands and options.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `dajax` with the given arguments (the process's own if None), and exit with its status."""
    _collect_seldom()
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if os.environ.get("NO_COLOR"):
        os.environ.setdefault("PYTHON_TYRO_ANSI_CODES", "False")  # tyro looks at it when it is imported
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name must not fail what is done
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            status = _run(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        # Who reads the output has gone, as in `dajax models | head -1`. Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = 128 + signal.SIGPIPE
    sys.exit(status)


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        from dajax import __version__

        rows = "\n".join(f"  {name:<9} {summary}" for name, summary in COMMANDS.items())
        print(_HELP.format(version=__version__, commands=rows), end="")
        return 0
    if arguments == ["--version"]:
        from dajax import __version__

        print(f"depth-anything-jax {__version__}")
        return 0
    if arguments[0] == "--tyro-print-completion":
        return _print_completion(arguments)
    return _run_command(arguments[0], arguments[1:])


def _run_command(name: str, arguments: list[str]) -> int:
    """Run one command, and return its status: a failure ends as a sentence, not as a traceback."""
    from dajax.cli.messages import say
    from dajax.errors import DajaxError

    interrupted = "interrupted"
    try:
        from dajax.cli.arguments import UsageError, read_arguments, similar

        try:
            if name not in COMMANDS:
                what = "option" if name.startswith("-") else "command"
                raise UsageError(f"there is no {what} {name}.{similar(name, list(COMMANDS))} See: dajax --help")
            module = importlib.import_module(f"dajax.cli.{name}")
            interrupted = getattr(module, "INTERRUPTED", interrupted)
            status = read_arguments(name, getattr(module, name), arguments)()
        except UsageError as error:
            say(name if name in COMMANDS else "", str(error))
            return 2
        except DajaxError as error:
            say(name, str(error))
            return status_of(error)
    except KeyboardInterrupt:
        say(name if name in COMMANDS else "", interrupted)
        return INTERRUPTED
    return status


def status_of(error: Exception) -> int:
    """Return the exit status of a command that ends with an error.

    Returns:
        1: the command failed, and may work later: the Hub, a file of weights, a full disk. 2: It has to be called in
        another way.
    """
    from dajax.errors import HubError, JobError, JobRefusedError, WeightsError

    return 1 if isinstance(error, HubError | JobError | WeightsError) and not isinstance(error, JobRefusedError) else 2


def _print_completion(arguments: list[str]) -> int:
    """Print a shell's completion script, which tyro makes of all commands."""
    import tyro

    commands: dict[str, Callable[..., int]] = {
        name: getattr(importlib.import_module(f"dajax.cli.{name}"), name) for name in COMMANDS
    }
    tyro.extras.subcommand_cli_from_dict(commands, prog="dajax", args=arguments, config=(tyro.conf.OmitArgPrefixes,))
    return 0


def _collect_seldom() -> None:
    """Let Python look for garbage less often: imports and tracing make very many objects, and nearly all of them stay.

    Nor need they be looked through once more at exit, when the system takes it all back.
    """
    gc.set_threshold(50_000, 100, 100)
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)


def _show_warning(message: Warning | str, *where: Any, **more: Any) -> None:
    """Without the line of code, which says nothing to those who only run it."""
    from dajax.cli.messages import in_options

    print(f"dajax: warning: {in_options(str(message))}", file=sys.stderr)
