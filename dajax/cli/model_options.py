"""Which model a command uses and how it runs: the same options at every door."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os.path import exists
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from dajax.checkpoints import list_models
from dajax.cli.arguments import UsageError, similar
from dajax.cli.options import Flag, unset, value_of
from dajax.config import KINDS, Kind, Style
from dajax.errors import AssumedKindWarning, DajaxError, HubError, WeightsError
from dajax.hub import is_hub_id

if TYPE_CHECKING:
    from dajax.inference.estimator import DepthEstimator
    from dajax.progress import ProgressBar

DEFAULT_MODEL = "small"
STYLES = get_args(Style)
Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES = get_args(Dtype)
Kernels = Literal["auto", "reference"]
KERNELS = get_args(Kernels)


def _choices(names: tuple[str, ...]) -> str:
    return f"{{{','.join(names)}}}"


@dataclass(frozen=True)
class _Model:
    model: Annotated[str | None, value_of(str), unset("NAME", "small", aliases=("-m",))] = None


@dataclass(frozen=True)
class CheckpointOptions:
    """What a checkpoint is, where it comes from, and how it runs.

    Attributes:
        config: what the weights are: an alias such as v1-base, or a config.json.
        kind: the same in one word; the weights tell the size.
        prefix: what the names of the model's tensors begin with.
        revision: a branch, tag or commit on the Hub.
        local_files_only: Open no connection: use only what has been downloaded before.
        style: As Transformers does, or as the authors' code does.
        dtype: the type in which the network computes.
        input_size: About how many pixels a side has in the network.
        cache: Keep compiled programs in ~/.cache/dajax for the next run.
    """

    config: Annotated[str | None, value_of(str), unset("NAME")] = None
    kind: Annotated[
        Kind | None,
        value_of(str, choices=KINDS),
        unset(_choices(KINDS)),
    ] = None
    prefix: Annotated[str | None, value_of(str), unset("TEXT", "the only model")] = None
    revision: Annotated[str | None, value_of(str), unset("NAME", "main")] = None
    local_files_only: Flag = False
    style: Annotated[
        Style | None,
        value_of(str, choices=STYLES),
        unset(_choices(STYLES), "the model's"),
    ] = None
    dtype: Annotated[
        Dtype | None,
        value_of(str, choices=DTYPES),
        unset(_choices(DTYPES), "float32"),
    ] = None
    input_size: Annotated[int | None, value_of(int), unset("PIXELS", "the model's")] = None
    cache: bool = True


@dataclass(frozen=True)
class ModelOptions(CheckpointOptions, _Model):
    """The model, and how it runs.

    Attributes:
        model: an alias (see `dajax models`), a Hub id, a folder or a file.
        kernels: auto is the fastest way, reference the plain formulas.
    """

    kernels: Annotated[Kernels | None, value_of(str, choices=KERNELS), unset("HOW", "auto")] = None


def loading_options(options: CheckpointOptions, name: str) -> dict[str, Any]:
    """Return the arguments of `dajax.load` that the options say.

    Raises:
        UsageError: the model has no such name, or its kind is not known.
        ConfigError: --config names no configuration.
    """
    from dajax.config import DepthAnythingConfig
    from dajax.weights.loading import released_config

    found: dict[str, Any] = {
        "prefix": options.prefix,
        "revision": options.revision,
        "local_files_only": options.local_files_only,
    }
    if options.config is not None and options.kind is not None:
        raise UsageError("--config and --kind both say what the weights are: give one of them")
    if options.config is not None:
        try:
            found["config"] = DepthAnythingConfig.from_pretrained(options.config)
        except DajaxError as error:
            raise UsageError(
                f"--config: {error}{similar(options.config, [row.alias for row in list_models()])}"
            ) from error
    elif options.kind is not None:
        found["config"] = released_config(name, options.kind, **found)
    return found


@contextmanager
def loading(name: str, said_by: str = "--model") -> Iterator[None]:
    """Refuse a model that does not exist or whose kind is not known, and let messages about it begin with --model.

    Args:
        name: the model.
        said_by: what named it: the option --model, or another part of the command line or of a file.

    Raises:
        UsageError: the name is no alias, no Hub id and no file; or a lone file does not say its kind.
    """
    aliases = [row.alias for row in list_models()]
    if name not in aliases and not is_hub_id(name) and not exists(name):
        raise UsageError(
            f"{said_by}: {name!r} is no alias (see: dajax models), no Hub id (owner/name), and no file or folder here."
            f"{similar(name, aliases)}"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error", AssumedKindWarning)
        try:
            yield
        except AssumedKindWarning as error:
            raise UsageError(
                f"{said_by}: {name!r} does not say what kind of model it is, and the tensors of all kinds look the "
                f"same: say it with --kind ({', '.join(KINDS)}), or with --config (an alias or a config.json)"
            ) from error
        except (HubError, WeightsError) as error:
            raise type(error)(f"{said_by}: {error}" if said_by == "--model" else str(error)) from error


def make_estimator(
    options: ModelOptions, *, batch_size: int, mesh: str | None = None, **running: Any
) -> DepthEstimator:
    """Return the estimator that the options describe, and switch the compilation cache on unless they say otherwise.

    Args:
        options: the model, and how it runs.
        batch_size: how many images of one size are run together.
        mesh: see `dajax.DepthEstimator`.
        running: its other options.

    Raises:
        UsageError: the model has no such name, or its kind is not known.
        ConfigError, WeightsError, HubError: see `dajax.load`.
    """
    from dajax.inference.compilation_cache import enable_compilation_cache
    from dajax.inference.estimator import DepthEstimator

    name = options.model or DEFAULT_MODEL
    if options.cache:
        enable_compilation_cache()
    with loading(name):
        return DepthEstimator(
            name,
            dtype=options.dtype or "float32",
            style=options.style,
            input_size=options.input_size,
            kernels=options.kernels,
            batch_size=batch_size,
            mesh=mesh,
            **running,
            **loading_options(options, name),
        )


def cache_text() -> str:
    """Say where compiled programs are kept; "" if they are not."""
    import jax

    folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    return f"programs that were compiled before come from {folder}, and new ones are kept there" if folder else ""


def say_compiling(estimator: DepthEstimator, bar: ProgressBar) -> None:
    """Say why there is no depth map yet, once for each size of images; and once where programs are kept."""
    said: set[tuple[int, ...]] = set()

    def say(shape: tuple[int, ...]) -> None:
        if shape[1:3] not in said:
            if not said and (text := cache_text()):
                bar.say(text)
            said.add(shape[1:3])
            size = f"{shape[1]}x{shape[2]}"
            bar.say(f"preparing the network for {size} pixels (compiling takes up to a minute, the first time)")

    estimator.on_new_shape = say
