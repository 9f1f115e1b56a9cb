"""The command line: thin callers of what a notebook would call.

Exit status: 0 all that was asked was done, 1 it failed, 2 bad usage, 3 partly done (what was left out is listed).
"""

from __future__ import annotations

import atexit
import gc
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `dajax` with the given arguments (the process's own if None), and exit with its status."""
    _collect_seldom()
    import tyro

    from dajax import __version__
    from dajax.cli.batch import batch
    from dajax.cli.convert import convert
    from dajax.cli.models import models
    from dajax.cli.predict import predict
    from dajax.cli.train import train
    from dajax.cli.video import video
    from dajax.errors import DajaxError

    if arguments is None:
        arguments = sys.argv[1:]
    if list(arguments) == ["--version"]:
        print(f"dajax {__version__}")
        sys.exit(0)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name must not fail what is done
    commands: dict[str, Callable[..., int]] = {
        "predict": predict,
        "batch": batch,
        "video": video,
        "convert": convert,
        "train": train,
        "models": models,
    }
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            status: int = tyro.extras.subcommand_cli_from_dict(
                commands,
                prog="dajax",
                description=f"Depth Anything V2 in JAX: one image in, one depth map out. Version {__version__}.",
                args=arguments,
            )
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        # Who read what is said has gone, as in `dajax models | head -1`. Python would say so again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(128 + signal.SIGPIPE)
    except DajaxError as error:
        print(f"dajax: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(status)


def _collect_seldom() -> None:
    """Let Python look for garbage less often: imports and tracing make very many objects, and nearly all of them stay.

    Nor need they be looked through once more at exit, when the system takes it all back.
    """
    gc.set_threshold(50_000, 100, 100)
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)


def _show_warning(message: Warning | str, *where: Any, **more: Any) -> None:
    """Without the line of code, which says nothing to those who only run it."""
    print(f"dajax: warning: {message}", file=sys.stderr)
