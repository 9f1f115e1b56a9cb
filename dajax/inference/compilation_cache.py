"""Compiled programs on disk, with which the next process starts without compiling."""

from __future__ import annotations

import os
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from dajax.errors import ConfigError


def enable_compilation_cache(directory: str | os.PathLike[str] | None = None) -> Path:
    """Keep compiled programs on disk for later processes.

    The command line calls this function. Importing dajax or loading a model does not.

    Args:
        directory: the folder for compiled programs. None is the folder in the environment variable
            `JAX_COMPILATION_CACHE_DIR`, or else `dajax/compiled` in the user's cache folder.

    Returns:
        The folder.

    Raises:
        ConfigError: no folder is named, and the user has no home folder.
    """
    directory = directory or os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if directory is None:
        try:
            home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        except RuntimeError as error:
            raise ConfigError(
                "there is no home folder to keep compiled programs in: set JAX_COMPILATION_CACHE_DIR to a folder, or "
                "switch the cache off"
            ) from error
        directory = home / "dajax" / "compiled"
    jax.config.update("jax_compilation_cache_dir", os.fspath(directory))
    # jax opens its cache once, and ignores another directory until the cache is reset.
    compilation_cache.reset_cache()
    # By default jax leaves out programs that compile in less than a second, but starting takes many of them.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return Path(directory)
