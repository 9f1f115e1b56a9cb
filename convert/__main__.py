"""`python -m convert`: checkpoints to Flax, to Transformers or to the authors' layout, and a proof of each."""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from dajax.config import DepthAnythingConfig
from dajax.errors import ConfigError, DajaxError
from dajax.hub import is_hub_id

from .to_flax import to_flax
from .to_pytorch import to_pytorch


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, and exit with its status."""
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            status = tyro.cli(_command, prog="python -m convert", args=arguments)
        except KeyboardInterrupt:
            status = 130
        sys.exit(status)


def _command(
    checkpoints: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINTS...", help_behavior_hint="")
    ],
    /,
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="DIR")],
    format: Literal["flax", "hf", "official"] = "flax",
    verify: bool = False,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None, tyro.conf.arg(help_behavior_hint="(default: the file's)")
    ] = None,
    config: Annotated[
        str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: the checkpoint's)")
    ] = None,
    revision: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: main)")] = None,
    token: Annotated[str | None, tyro.conf.arg(metavar="TOKEN", help_behavior_hint="(default: the stored one)")] = None,
    local_files_only: bool = False,
) -> int:
    """Convert checkpoints of Depth Anything V1 and V2. Each goes to a folder of its own name below DIR.

    Exit status: 0 all done (and verified, if that was asked for), 1 something failed (the others are done all the
    same), 2 bad usage.

    Args:
        checkpoints: aliases such as small or large-metric-indoor, Hub ids, folders, or .safetensors, .pth and .bin
            files, of Transformers, of the authors, of training scripts, or dajax's own.
        out: where to; made if need be. A checkpoint of the same name and format there is replaced.
        format: flax (params.safetensors keyed by Flax path), hf (Transformers opens it) or official (a .pth that the
            authors' code opens).
        verify: then run what was read and what was written in PyTorch and in Flax, and compare every stage. Needs torch
            and, for its own names, transformers.
        dtype: of the parameters that are written.
        config: what lone files are: an alias such as large-metric-indoor, or a config.json.
        revision: branch, tag or commit on the Hub.
        token: of a Hub account.
        local_files_only: take only what the Hub's cache has.
    """
    try:
        targets = _targets(checkpoints, out)
        given = None if config is None else DepthAnythingConfig.from_pretrained(config)
        if verify:
            from .verify import require

            require("torch")
    except DajaxError as error:
        print(f"convert: {error}", file=sys.stderr)
        return 2
    hub_options = {"revision": revision, "token": token, "local_files_only": local_files_only}
    failed = 0
    for name, directory in targets.items():
        try:
            done = _convert(name, directory, format, dtype, given, hub_options, verify)
        except DajaxError as error:
            print(f"convert: {name}: {error}", file=sys.stderr)
            done = False
        failed += not done
    if failed:
        print(f"convert: {failed} of {len(targets)} failed", file=sys.stderr)
    return 1 if failed else 0


def _targets(checkpoints: Sequence[str], out: Path) -> dict[str, Path]:
    """Return {checkpoint: its folder}."""
    if not checkpoints:
        raise ConfigError("name at least one checkpoint")
    targets = {name: out / _short_name(name) for name in checkpoints}
    for directory, count in Counter(targets.values()).items():
        if count > 1:
            names = " and ".join(name for name, target in targets.items() if target == directory)
            raise ConfigError(f"{names} would both go to {directory}: convert them one by one, to different --out")
    for name, directory in targets.items():
        place = os.path.realpath(directory)
        if not is_hub_id(name) and place in (os.path.realpath(name), os.path.dirname(os.path.realpath(name))):
            raise ConfigError(f"{name} would be written over itself: choose another --out")
    return targets


def _short_name(name: str) -> str:
    if is_hub_id(name):
        return name.rpartition("/")[2]
    path = Path(os.path.abspath(name))
    return path.name if path.is_dir() else path.stem


def _convert(
    name: str,
    directory: Path,
    format: Literal["flax", "hf", "official"],
    dtype: str | None,
    config: DepthAnythingConfig | None,
    hub_options: dict[str, Any],
    verify: bool,
) -> bool:
    """Convert one checkpoint; return whether it was proven or no proof was asked for."""
    options = {"config": config, "dtype": dtype, **hub_options}
    print(f"{name}: reading", flush=True)
    if format == "flax":
        to_flax(name, directory, **options)
    else:
        to_pytorch(name, directory, format=format, **options)
    files = sorted(path for path in directory.iterdir() if path.is_file())
    print(f"{name}: wrote {directory}: " + ", ".join(f"{path.name} ({_size(path)})" for path in files), flush=True)
    if not verify:
        return True

    from .verify import describe, verify_conversion
    from .verify_table import first_failure, table

    proven = True
    for run in verify_conversion(name, directory, **options):
        print(f"{name}: {describe(run)}\n{table(run.rows)}", flush=True)
        proven = proven and first_failure(run.rows) is None
    if not proven:
        print(f"convert: {name}: do not use {directory}: it does not compute what its source does", file=sys.stderr)
    return proven


def _size(path: Path) -> str:
    size = path.stat().st_size
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def _show_warning(message: Warning | str, *where: Any, **more: Any) -> None:
    """Without the line of code, which says nothing to those who only run it."""
    print(f"convert: warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    main()
