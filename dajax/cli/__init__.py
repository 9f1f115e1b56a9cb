"""The command line: thin callers of what a notebook would call.

Exit status: 0 all that was asked was done, 1 it failed, 2 bad usage, 3 partly done (what was left out is listed).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `dajax` with the given arguments (the process's own if None), and exit with its status."""
    import tyro

    from dajax.errors import DajaxError

    from .models import models
    from .predict import predict

    commands: dict[str, Callable[..., int]] = {"predict": predict, "models": models}
    try:
        status: int = tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="dajax",
            description="Depth Anything V2 in JAX: one photo in, one depth map out.",
            args=arguments,
        )
    except DajaxError as error:
        print(f"dajax: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(status)
