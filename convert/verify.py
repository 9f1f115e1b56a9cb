"""Stage by stage, what PyTorch computes from a checkpoint against what Flax computes from it.

`python -m convert.verify CHECKPOINT` prints a table and ends with 1 if a stage is over its bound. PyTorch's side is
Transformers' model for files with Transformers' names, and for the authors' files their network, written anew on the
file's own tensors. dajax's tables of names take no part in either.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Unpack

import jax
import numpy as np
import tyro

import dajax
from dajax.config import DepthAnythingConfig
from dajax.errors import ConfigError, DajaxError
from dajax.hub import HubOptions, hub_options_in
from dajax.weights.checkpoint_files import Files, find_files, find_shards
from dajax.weights.open import open_weights

from .verify_flax import flax_stages, stage_names
from .verify_table import FLOAT32_SLACK, StageError, compare, first_failure, table

# Pixels of an image of 4:3, whose position embeddings are resampled.
SIZE = (518, 686)


def verify(
    source: str | os.PathLike[str],
    *,
    flax: str | os.PathLike[str] | None = None,
    config: DepthAnythingConfig | None = None,
    flax_config: DepthAnythingConfig | None = None,
    style: str | None = None,
    pixels: np.ndarray | None = None,
    dtype: str | None = None,
    torch_dtype: str = "float64",
    **hub_options: Unpack[HubOptions],
) -> list[StageError]:
    """Run a checkpoint in PyTorch and in Flax and compare every stage.

    Args:
        source: what PyTorch runs: a checkpoint with the names of Transformers or of the authors, as for `dajax.load`.
        flax: what Flax runs: what `source` was converted to or from. None: `source` itself, as `dajax.load` reads it.
        config: for `source`, instead of its own.
        flax_config: for `flax`, instead of its own.
        style: how position embeddings are resampled: "huggingface" or "official". None is what the source's own code
            does.
        pixels: float [batch, height, width, 3], normalised; seeded random ones if None.
        dtype: round both sides' weights to this type first, for a conversion that rounded them.
        torch_dtype: what PyTorch computes in, "float64" or "float32". float64 is the better judge: float32 has rounding
            errors of its own, several times as large as those of dajax.
        hub_options: see `dajax.hub.HubOptions`.

    Returns:
        One row for every stage, from pixels to depth.

    Raises:
        WeightsError: a checkpoint does not load on one of the sides.
        ConfigError: an argument is wrong, `source` has dajax's own names, or PyTorch or Transformers is missing.
    """
    files = find_files(source, hub_options)
    names = layout(files)
    if names == "flax":
        raise ConfigError(f"{source} has dajax's own names, which PyTorch does not know: convert it, verify the result")
    require("torch", *(["transformers"] if names == "transformers" else []))
    model, params = dajax.load(
        source if flax is None else flax,
        config=config if flax is None else flax_config,
        style=style or ("official" if names == "official" else "huggingface"),
        sharding=jax.devices("cpu")[0],
        **hub_options,
    )
    if dtype is not None:
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    if pixels is None:
        pixels = random_pixels(*SIZE)
    found = flax_stages(model, params, pixels)
    del params
    expected = _torch_stages(files, names, config, model.config, pixels, torch_dtype, dtype)
    slack = FLOAT32_SLACK if torch_dtype == "float32" else 1.0
    return compare(stage_names(model.config), found, expected, slack)


class Run(NamedTuple):
    """A comparison, and between what."""

    torch: str
    flax: str
    rows: list[StageError]


def verify_conversion(
    source: str | os.PathLike[str],
    written: str | os.PathLike[str],
    *,
    config: DepthAnythingConfig | None = None,
    **options: Any,
) -> Iterator[Run]:
    """Compare what was read and what was written: each that PyTorch opens against Flax's reading of the other.

    Args:
        source: what was converted.
        written: the directory that it became.
        config: for `source`, instead of its own.
        options: of `verify`.

    Raises:
        ConfigError: both have dajax's own names, so that PyTorch has nothing to run.
        WeightsError, HubError: see `verify`.
    """
    hub_options = hub_options_in(options)
    runs = 0
    if layout(find_files(source, hub_options)) != "flax":
        yield Run(str(source), str(written), verify(source, flax=written, config=config, **options))
        runs += 1
    if layout(find_files(written, {})) != "flax":
        yield Run(str(written), str(source), verify(written, flax=source, flax_config=config, **options))
        runs += 1
    if not runs:
        raise ConfigError(f"{source} and {written} have dajax's own names: there is nothing that PyTorch could run")


def layout(files: Files) -> Literal["transformers", "official", "flax"]:
    """Return whose names the tensors of a checkpoint have."""
    names: list[str] = []
    for path in find_shards(files.weights):
        with open_weights(path) as file:
            names += file.tensors
    if any("/" in name for name in names):
        return "flax"
    return "official" if any(".attn.qkv." in name for name in names) else "transformers"


def require(*packages: str) -> None:
    """Check that packages are installed.

    Raises:
        ConfigError: one is not.
    """
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise ConfigError(f"verifying needs {' and '.join(missing)}: pip install '.[parity]'")


def _torch_stages(
    files: Files,
    names: str,
    given: DepthAnythingConfig | None,
    config: DepthAnythingConfig,
    pixels: np.ndarray,
    torch_dtype: str,
    rounded_to: str | None,
) -> dict[str, np.ndarray]:
    import torch

    if torch_dtype not in ("float64", "float32"):
        raise ConfigError(f"torch_dtype must be float64 or float32, got {torch_dtype!r}")
    dtypes = getattr(torch, torch_dtype), None if rounded_to is None else getattr(torch, rounded_to)
    if names == "official":
        from .verify_official import official_stages
        from .verify_state import read_state

        return official_stages(read_state(find_shards(files.weights)), config, pixels, *dtypes)
    from .verify_transformers import transformers_stages

    return transformers_stages(files, given, config, pixels, *dtypes)


def random_pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return float32 [1, height, width, 3] of mean 0 and deviation 1, like a normalised image."""
    return np.random.default_rng(seed).standard_normal((1, height, width, 3), np.float32)


def describe(run: Run, torch_dtype: str = "float64") -> str:
    """Return what a table is of."""
    return (
        f"{run.torch} in PyTorch ({torch_dtype}), {run.flax} in Flax (float32); errors in deviations of PyTorch's stage"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, and exit with its status: 0 within the bounds, 1 over one or failed, 2 bad usage."""
    try:
        status = tyro.cli(_command, prog="python -m convert.verify", args=arguments)
    except DajaxError as error:
        print(f"verify: {error}", file=sys.stderr)
        sys.exit(1)
    sys.exit(status)


def _command(
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")],
    /,
    flax: Annotated[str | None, tyro.conf.arg(metavar="CHECKPOINT", help_behavior_hint="(default: the same)")] = None,
    config: Annotated[
        str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: the checkpoint's)")
    ] = None,
    style: Annotated[
        Literal["huggingface", "official"] | None, tyro.conf.arg(help_behavior_hint="(default: as the file's own code)")
    ] = None,
    size: Annotated[tuple[int, int], tyro.conf.arg(metavar="HEIGHT WIDTH")] = SIZE,
    seed: Annotated[int, tyro.conf.arg(metavar="N")] = 0,
    image: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: random pixels)")] = None,
    torch_dtype: Literal["float64", "float32"] = "float64",
    revision: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: main)")] = None,
    token: Annotated[str | None, tyro.conf.arg(metavar="TOKEN", help_behavior_hint="(default: the stored one)")] = None,
    local_files_only: bool = False,
) -> int:
    """Compare PyTorch and Flax on a checkpoint, stage by stage.

    Args:
        source: an alias, a Hub id, a folder, or a .safetensors, .pth or .bin file with the names of Transformers or of
            the authors' code.
        flax: another checkpoint of the same weights for the side of Flax: what this one was converted to or from.
        config: what a lone file is: an alias such as large-metric-indoor, or a config.json.
        style: how position embeddings are resampled.
        size: of random pixels; multiples of 14.
        seed: of random pixels.
        image: instead of random pixels; its size is the processor's.
        torch_dtype: what PyTorch computes in; float64 is the better judge, float32 takes half the memory.
        revision: branch, tag or commit on the Hub.
        token: of a Hub account.
        local_files_only: take only what the Hub's cache has.
    """
    if image is None:
        pixels = random_pixels(*size, seed)
    else:
        pixels = dajax.DepthImageProcessor(style=style or "huggingface")(image)["pixel_values"]
    given = None if config is None else DepthAnythingConfig.from_pretrained(config)
    rows = verify(
        source,
        flax=flax,
        config=given,
        flax_config=given,
        style=style,
        pixels=pixels,
        torch_dtype=torch_dtype,
        revision=revision,
        token=token,
        local_files_only=local_files_only,
    )
    print(describe(Run(source, flax or source, rows), torch_dtype))
    print(table(rows))
    return 1 if first_failure(rows) else 0


if __name__ == "__main__":
    main()
