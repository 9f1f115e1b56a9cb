"""Turns names into local files. Only this module talks to the Hugging Face Hub and imports huggingface_hub."""

from __future__ import annotations

import errno
import queue
import re
import socket
import threading
from collections.abc import Mapping, Sequence
from os import PathLike
from os.path import exists
from pathlib import Path
from typing import Any, TypedDict, Unpack, cast
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from dajax import limits
from dajax.checkpoints import ALIASES, ORIGINALS, embedded_folder
from dajax.errors import HubError, shown

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
# The client makes paths of file names and revisions. This allows less than git does: no part begins with a dot, and no
# part has a character that separates folders or drives on any system.
_PART = r"[^\x00-\x20\x7f~^:?*\[\\/.][^\x00-\x20\x7f~^:?*\[\\/]*"
_RELATIVE_PATH = re.compile(rf"{_PART}(?:/{_PART})*")
PROCESSOR_FILE = "preprocessor_config.json"
_TOKEN = re.compile(r"[!-~]+")


class HubOptions(TypedDict, total=False):
    """The options of everything that takes the name of a checkpoint; they matter only where the Hub has it.

    Attributes:
        revision: a branch, tag or commit. None: the branch "main".
        token: the token of a Hub account, for gated or private repositories. False sends none, None the one that is
            stored.
        cache_dir: the folder that keeps downloads. None: huggingface_hub's.
        local_files_only: whether to open no connection and use only what is cached.
    """

    revision: str | None
    token: str | bool | None
    cache_dir: str | PathLike[str] | None
    local_files_only: bool


def hub_options_in(options: Mapping[str, Any]) -> HubOptions:
    """Return those of some options that `HubOptions` declares."""
    return cast(HubOptions, {name: options[name] for name in HubOptions.__annotations__ if name in options})


def is_hub_id(name: str | PathLike[str]) -> bool:
    """Whether `name` is to be looked up on the Hub: an alias, or owner/name where no such path exists."""
    if not isinstance(name, str):
        return False
    return name in ALIASES or (_HUB_ID.fullmatch(name) is not None and not exists(name))


class _NotInRepositoryError(HubError):
    """The repository does not have the file."""


def processor_file(name: str | PathLike[str], hub_options: HubOptions) -> Path | None:
    """Return a checkpoint's preprocessor_config.json; None if it has none.

    The aliases have none of their own, because all released checkpoints share the defaults; the authors' repositories
    have none, because their code has the same recipe written into it.

    Args:
        name: as for `dajax.load`.
        hub_options: see `HubOptions`.

    Raises:
        HubError: the Hub cannot be asked.
    """
    if name in ALIASES or name in ORIGINALS:
        return None
    if is_hub_id(name):
        try:
            return locate(name, PROCESSOR_FILE, **hub_options)
        except _NotInRepositoryError:
            return None
    given = embedded_folder(name) or Path(name)
    file = (given if given.is_dir() else given.parent) / PROCESSOR_FILE
    # A link that leads nowhere is an error, not a default.
    return file if file.exists() or file.is_symlink() else None


def locate(name: str | PathLike[str], filename: str, **hub_options: Unpack[HubOptions]) -> Path:
    """Return the local path of one file of a Hub repository. Download it into the Hub's cache if necessary.

    Args:
        name: an alias or a Hub id (owner/name).
        filename: the file in the repository.
        hub_options: see `HubOptions`.

    Raises:
        HubError: the file cannot be had. The message says what to try.
    """
    return locate_first(name, [filename], **hub_options)


def locate_first(name: str | PathLike[str], filenames: Sequence[str], **hub_options: Unpack[HubOptions]) -> Path:
    """Return the local path of the first of several files that a Hub repository (or, offline, the cache) has.

    Only a file that is not there leads to the next one. A failed connection, for example, does not, because the files
    may hold different things.

    Args:
        name: an alias or a Hub id (owner/name).
        filenames: files in the repository, in order of preference.
        hub_options: see `HubOptions`.

    Raises:
        HubError: no file can be had. The message says what to try.
    """
    # Imported here, because it takes a noticeable part of a second and local files do not need it.
    from huggingface_hub import hf_hub_download

    name = str(name)
    repository = ALIASES[name].hub_id if name in ALIASES else name
    revision, token = hub_options.get("revision"), hub_options.get("token")
    local_files_only = hub_options.get("local_files_only", False)
    _check_arguments(filenames, revision, token)
    cache = _folder(hub_options.get("cache_dir"))
    is_unreachable = not local_files_only and not _is_reachable()
    failure: Exception | None = None
    for filename in filenames:
        if _COMMIT.fullmatch(revision or "") and _is_known_missing(repository, filename, revision, cache):
            continue
        try:
            path = hf_hub_download(
                repository,
                filename,
                revision=revision,
                token=token,
                cache_dir=cache,
                local_files_only=local_files_only or is_unreachable,
            )
        # The client raises errors of two HTTP libraries (by its version), of Xet and of the file system. Exception is
        # their only common base.
        except Exception as error:
            failure = None if is_unreachable else error  # out of reach, the client only says that it is not cached
            is_known_missing = _is_known_missing(repository, filename, revision, cache)
            if is_unreachable and not is_known_missing:
                raise HubError(f"{filename} of {repository} could not be had: {_without_network()}") from error
            if not (_is_missing(error) or is_known_missing):
                reason = _reason(error, repository, revision, cache)
                raise HubError(f"{filename} of {repository} could not be had: {reason}") from error
        else:
            return Path(path)
    *others, last = filenames
    files = f"{', '.join(others)} or {last}" if others else last
    kind = HubError if _is_local(failure) else _NotInRepositoryError
    raise kind(f"{files} of {repository} {_where_missing(failure, revision)}") from failure


def _is_local(failure: Exception | None) -> bool:
    """Whether only the cache was looked into."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    return isinstance(failure, LocalEntryNotFoundError)


def _is_reachable() -> bool:
    """Whether the Hub's server can be reached, found out within `limits.HUB_CONNECT_TIMEOUT`.

    The client itself tries for half a minute without a network, and longer where no server answers.
    """
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return True  # the client opens no connection, and says what to do
    parts = urlsplit(constants.ENDPOINT)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    if proxy_bypass(parts.hostname or "") or parts.scheme not in getproxies():
        return _connects(parts.hostname or "", port)
    return True  # behind a proxy, names need not resolve here


def _connects(host: str, port: int) -> bool:
    answer: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=limits.HUB_CONNECT_TIMEOUT).close()
        except OSError:
            answer.put(False)
        else:
            answer.put(True)

    # In a thread, because looking up a name has no time-out of its own.
    threading.Thread(target=connect, daemon=True).start()
    try:
        return answer.get(timeout=limits.HUB_CONNECT_TIMEOUT)
    except queue.Empty:
        return False


def _without_network() -> str:
    from huggingface_hub import constants

    return (
        f"the connection to {constants.ENDPOINT} failed, and the file is not in the local cache. Without a network, "
        "name a local folder or file, set HF_HUB_OFFLINE=1 to use only what was downloaded before, or take the model "
        "'tiny', which needs no download"
    )


def _check_arguments(filenames: Sequence[str], revision: str | None, token: str | bool | None) -> None:
    if not filenames:
        raise HubError("no file was asked for")
    for filename in filenames:
        if not isinstance(filename, str) or not _RELATIVE_PATH.fullmatch(filename):
            raise HubError(f"{shown(filename)} is not the name of a file in a repository")
    if revision is not None and not (isinstance(revision, str) and _RELATIVE_PATH.fullmatch(revision)):
        raise HubError(f"revision must be a branch, a tag or a commit, got {shown(revision)}")
    # The token is never shown. The HTTP library would quote a header that it refuses.
    if isinstance(token, str) and not _TOKEN.fullmatch(token):
        raise HubError("token is empty, or has a space, a newline or another character that no token has")
    if not isinstance(token, str | bool | None):
        raise HubError(f"token must be a string, True, False or None, got {type(token).__name__}")


def _folder(cache_dir: str | PathLike[str] | None) -> Path | None:
    try:
        return None if cache_dir is None else Path(cache_dir).expanduser()
    except (TypeError, RuntimeError) as error:  # not a path, or a home that does not exist
        raise HubError(f"cache_dir must be a folder, got {shown(cache_dir)}: {error}") from error


def _is_missing(error: Exception) -> bool:
    """Whether the repository has no such file or, offline, the cache."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled, RemoteEntryNotFoundError

    if isinstance(error, LocalEntryNotFoundError):  # with a cause: the Hub was asked and not reached
        return error.__cause__ is None or isinstance(error.__cause__, OfflineModeIsEnabled)
    return isinstance(error, RemoteEntryNotFoundError)


def _is_known_missing(repository: str, filename: str, revision: str | None, cache: Path | None) -> bool:
    """Whether the Hub has said before that the cached revision has no such file."""
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    try:
        return try_to_load_from_cache(repository, filename, cache_dir=cache, revision=revision) is _CACHED_NO_EXIST
    except (OSError, ValueError):
        return False


def _where_missing(failure: Exception | None, revision: str | None) -> str:
    from huggingface_hub.errors import LocalEntryNotFoundError

    if not isinstance(failure, LocalEntryNotFoundError) or not _is_missing(failure):
        return f"is not in the repository (revision {revision or 'main'})"
    switch = "local_files_only" if failure.__cause__ is None else "HF_HUB_OFFLINE"
    return (
        f"is not in the local cache, and {switch} is set: download it once with a connection, or pass a local directory"
    )


def _reason(error: BaseException, repository: str, revision: str | None, cache: Path | None) -> str:
    """Say why a file could not be had, and what to try."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, errors.GatedRepoError):
        account = "the token's account" if error.response.status_code == 403 else "an account"
        return (
            f"the repository is gated: accept its terms at {constants.ENDPOINT}/{repository} with {account} and wait "
            "to be let in, then pass token=… (or run: hf auth login)"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"no repository {repository!r} on the Hub (or it is private: pass token=…), and no local folder of that "
            "name; dajax.list_models() lists the aliases"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the repository has no branch, tag or commit {revision or 'main'!r}"
    if isinstance(error, errors.LocalTokenNotFoundError):
        return "token=True, but no token is stored: run: hf auth login, or pass the token itself"
    if isinstance(error, errors.FileMetadataError):
        return (
            f"{constants.ENDPOINT} does not answer as the Hub does: is a proxy or a login page in between, or "
            f"HF_ENDPOINT set? ({_brief(error)})"
        )
    if isinstance(error, errors.HfHubHTTPError):
        return _http_reason(error.response.status_code, _brief(error), repository)
    # The HTTP library's (httpx, or its successor). A RuntimeError is Xet's, or an early client's second attempt.
    if isinstance(error, errors.HTTPError | RuntimeError):
        return f"the connection to {constants.ENDPOINT} failed ({_brief(error)}). Try again: no part of a file is kept"
    if isinstance(error, OSError) and error.errno is not None:
        return _storage_reason(error, cache or Path(constants.HF_HUB_CACHE))
    if isinstance(error, errors.HFValidationError):
        return f"a repository is named owner/name, of letters, digits, '-', '_' and '.' ({_brief(error)})"
    return _brief(error)


def _http_reason(status: int, message: str, repository: str) -> str:
    if status == 401:
        return (
            "the Hub refuses the token: it is mistyped, expired or revoked. Pass another with token=… (or run: "
            f"hf auth login), or token=False to send none ({message})"
        )
    if status == 403:
        return f"it is forbidden: may the token read {repository}, and no firewall stands before it? ({message})"
    if status == 429:
        return f"too many requests: wait some minutes; with token=… more are allowed ({message})"
    if status >= 500:
        return f"the Hub is out of order: try again later ({message})"
    return message


def _storage_reason(error: OSError, cache: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        problem = f"no space is left for it in {cache}"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        problem = f"no permission to write in {cache}"
    else:
        problem = f"{cache} cannot hold it ({_brief(error)})"
    return f"{problem}: pass cache_dir=…, or set HF_HOME, to another folder"


def _brief(error: BaseException) -> str:
    """Return the kind of an error and the first line of its message, which may come from anywhere."""
    line = next((line for line in str(error).splitlines() if line.strip()), "")
    printable = "".join(c for c in line if c.isprintable()).strip()
    return f"{type(error).__name__}: {printable[:200]}".rstrip(": ")
