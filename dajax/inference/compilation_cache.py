"""Compiled programs kept on disk, so that the next process starts without compiling."""

from __future__ import annotations

import os
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from dajax.errors import ConfigError


def enable_compilation_cache(directory: str | os.PathLike[str] | None = None) -> Path:
    """Keep compiled programs on disk for later processes; the command line does this, importing dajax does not.

    Args:
        directory: where to. None: what `JAX_COMPILATION_CACHE_DIR` says, else `dajax` in the user's cache folder.

    Returns:
        The directory in use.

    Raises:
        ConfigError: no directory is named, and the user has no home.
    """
    directory = directory or os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if directory is None:
        try:
            home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        except RuntimeError as error:
            raise ConfigError(
                "there is no home folder to keep compiled programs in: set JAX_COMPILATION_CACHE_DIR, or use no cache"
            ) from error
        directory = home / "dajax" / "compiled"
    jax.config.update("jax_compilation_cache_dir", os.fspath(directory))
    # jax opens its cache once and then keeps to that directory.
    compilation_cache.reset_cache()
    # jax's own thresholds leave out programs that compile in under a second, of which a start has many.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return Path(directory)
