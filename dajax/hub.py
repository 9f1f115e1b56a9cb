"""Names to local files. The only place that talks to the Hugging Face Hub (and imports huggingface_hub)."""

from __future__ import annotations

import re
from os import PathLike
from os.path import exists
from pathlib import Path

from .checkpoints import ALIASES
from .errors import HubError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def is_hub_id(name: str | PathLike[str]) -> bool:
    """Whether `name` is to be looked up on the Hub: an alias, or owner/name where no such path exists."""
    if not isinstance(name, str):
        return False
    return name in ALIASES or (_HUB_ID.fullmatch(name) is not None and not exists(name))


def locate(
    name: str | PathLike[str],
    filename: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Path:
    """Return the local path of one file of a Hub repository, downloading it into the Hub's cache if need be.

    Args:
        name: an alias or a Hub id (owner/name).
        filename: the file in the repository.
        revision: branch, tag or commit.
        token: of a Hub account, for gated or private repositories.
        cache_dir: where downloads are kept (default: huggingface_hub's).
        local_files_only: never open a connection; use what is cached.

    Raises:
        HubError: the file cannot be had, with what to try.
    """
    # Imported here: it takes a noticeable part of a second, and local files need none of it.
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    name = str(name)
    repository = ALIASES[name].hub_id if name in ALIASES else name
    try:
        path = hf_hub_download(
            repository,
            filename,
            revision=revision,
            token=token,
            cache_dir=None if cache_dir is None else Path(cache_dir),
            local_files_only=local_files_only,
        )
    except GatedRepoError as error:
        raise HubError(f"{repository} is gated: accept its terms on its page, then pass token=…: {error}") from error
    except RepositoryNotFoundError as error:
        raise HubError(
            f"no repository {repository!r} on the Hub (or it is private: pass token=…). "
            f"For a local folder that is not there either; dajax.list_models() lists the aliases: {error}"
        ) from error
    except LocalEntryNotFoundError as error:
        raise HubError(
            f"{filename} of {repository} is not in the local cache and the Hub was not reached"
            f"{' (local_files_only is set)' if local_files_only else ''}: "
            f"download it once with a connection, or pass a local directory: {error}"
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise HubError(f"{filename} of {repository} could not be had from the Hub: {error}") from error
    return Path(path)
