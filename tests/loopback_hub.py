"""A Hugging Face Hub on this machine: the part of its protocol that downloads need, over real sockets.

It answers as the Hub does: a small file after a relative redirect, a big one (LFS) by a redirect to another host (here:
another port), 401, 403 and 404 with the Hub's headers. Tests give it folders and, in `faults`, what goes wrong.
"""

import hashlib
import json
import os
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote, unquote, urlsplit

MEMBER, STRANGER = "hf_member", "hf_stranger"  # accounts' tokens: one may read everything, one only what is public
LFS = (".safetensors", ".bin", ".pth")
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Request:
    """What a client asked for; `host` is "hub" or "cdn"."""

    host: str
    method: str
    path: str
    headers: Mapping[str, str]


@dataclass
class Fault:
    """What goes wrong with the next `times` requests for a file.

    Attributes:
        file: end of the request's path.
        status, headers: an answer without the file, or headers (None: without them) that replace right ones.
        cut_at: the connection ends after so many bytes of the body.
        stall_at: after so many bytes nothing comes until `release` is set; `stalled` is set meanwhile.
        delay: seconds before the answer.
        no_range: the file is sent from its start, whatever was asked for.
    """

    file: str
    method: str = "GET"
    times: float = 1
    status: int | None = None
    headers: Mapping[str, str | None] = field(default_factory=dict)
    cut_at: int | None = None
    stall_at: int | None = None
    delay: float = 0
    no_range: bool = False
    stalled: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)


class LoopbackHub:
    """A Hub that serves folders; a context manager.

    Attributes:
        url, cdn_url: of the Hub, and of the host that big files come from.
        requests: all that were made, in order.
        faults: what goes wrong; a fault is removed when it is used up.
        private, gated: repositories that only MEMBER may read.
        waits: how long the client would have waited before its retries, in seconds (see `point_client`).
    """

    def __init__(self, repositories: Mapping[str, Path] | None = None) -> None:
        self.requests: deque[Request] = deque()
        self.faults: list[Fault] = []
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.waits: list[float] = []
        self._folders: dict[tuple[str, str], Path] = {}  # by repository and commit
        self._revisions: dict[tuple[str, str], str] = {}
        self._lock = threading.Lock()
        self._servers = [_Server(self, host) for host in ("hub", "cdn")]
        self.url, self.cdn_url = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)
        for repository, folder in (repositories or {}).items():
            self.push(repository, folder)

    def __enter__(self):
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Be gone, for clients with an open connection too."""
        for server in self._servers:
            server.shutdown()
            server.server_close()
            server.end_connections()

    def push(self, repository: str, folder: Path, revision: str = "main") -> str:
        """Make a folder a commit of a repository and `revision` its name; return the commit."""
        commit = hashlib.sha1(f"{repository} {folder}".encode()).hexdigest()
        self._folders[repository, commit] = folder
        self._revisions[repository, revision] = self._revisions[repository, commit] = commit
        return commit

    def find(self, repository: str, revision: str) -> tuple[str | None, Path | None]:
        commit = self._revisions.get((repository, revision))
        return commit, self._folders.get((repository, commit or ""))

    def has(self, repository: str) -> bool:
        return any(known == repository for known, _ in self._folders)

    def asked(self, *, method: str = "", file: str = "", host: str = "") -> list[Request]:
        """Return the requests of this method, host and end of path, leaving out what the client asks by itself."""
        return [
            request
            for request in self.requests
            if method in ("", request.method)
            and host in ("", request.host)
            and request.path.endswith(file)
            and "/agent-harnesses" not in request.path
        ]

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if path.endswith(fault.file) and fault.method == method:
                    fault.times -= 1
                    if fault.times <= 0:
                        self.faults.remove(fault)
                    return fault
        return None

    def environment(self, home: Path, **more: object) -> dict[str, str]:
        """Return all environment variables for a process whose Hub is this one and whose caches lie in `home`."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "HUGGING", "TRANSFORMERS_", "JAX_COMPILATION"))
            and "proxy" not in name.lower()
        }
        ours = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": home / "huggingface",
            "HF_HUB_OFFLINE": 0,
            "HF_HUB_DISABLE_XET": 1,
            "HF_HUB_DISABLE_TELEMETRY": 1,
            "XDG_CACHE_HOME": home / "cache",
            "PYTHONPATH": ROOT,
        }
        return kept | {name: str(value) for name, value in {**ours, **more}.items()}

    def point_client(self, monkeypatch, home: Path) -> None:
        """Make this process's huggingface_hub use this Hub, with its caches in `home` and without waiting to retry."""
        from huggingface_hub import constants, file_download
        from huggingface_hub.utils import _http

        values = {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_TELEMETRY": True,
        }
        for name, value in values.items():
            assert hasattr(constants, name)
            monkeypatch.setattr(constants, name, value)
        for name in os.environ:
            if name.startswith(("HF_TOKEN", "HUGGING", "HF_OIDC")):
                monkeypatch.delenv(name)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        for module in (_http, file_download):
            monkeypatch.setattr(module, "time", SimpleNamespace(**{**vars(time), "sleep": self.waits.append}))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, hub: LoopbackHub, host: str) -> None:
        self.hub, self.host = hub, host
        self._connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request, client_address) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def end_connections(self) -> None:
        for connection in list(self._connections):
            with suppress(OSError):  # the client may have ended it
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address) -> None:
        """A client that goes away is no error of the server."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30
    server: _Server

    def log_message(self, *_) -> None: ...

    def do_GET(self) -> None:
        hub, path = self.server.hub, urlsplit(self.path).path
        hub.requests.append(Request(self.server.host, self.command, unquote(path), dict(self.headers.items())))
        self.fault = hub.take_fault(self.command, unquote(path)) or Fault("")
        time.sleep(self.fault.delay)
        if self.fault.status is not None:
            self._answer(self.fault.status, {})
        elif self.server.host == "cdn":  # as with a signed address, nobody is asked who he is
            owner, name, commit, *parts = unquote(path).strip("/").split("/")
            self._send_file(hub.find(f"{owner}/{name}", commit)[1] / "/".join(parts), {})
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(*map(unquote, found.groups()))
        elif found := re.fullmatch(r"/api/resolve-cache/models/([^/]+/[^/]+)/([^/]+)/(.+)", path):
            self._resolve(*map(unquote, found.groups()), redirect=False)
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            repository, what, revision = found.groups()
            self._describe(unquote(repository), what, unquote(revision or "main"))
        else:
            self._answer(404, {})

    do_HEAD = do_GET

    def _access(self, repository: str, revision: str) -> tuple[str, Path] | None:
        """Return the commit and its folder, or None after the request was refused."""
        hub = self.server.hub
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        commit, folder = hub.find(repository, revision)
        if token not in ("", MEMBER, STRANGER):
            self._refuse(401, None, "Invalid credentials in Authorization header")
        elif not hub.has(repository) or (repository in hub.private and token != MEMBER):
            self._refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        elif repository in hub.gated and token != MEMBER:
            self._refuse(403 if token else 401, "GatedRepo", f"Access to model {repository} is restricted")
        elif commit is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return commit, folder
        return None

    def _resolve(self, repository: str, revision: str, filename: str, redirect: bool = True) -> None:
        if (found := self._access(repository, revision)) is None:
            return
        commit, folder = found
        path, place = folder / filename, quote(f"{repository}/{commit}/{filename}")
        headers = {"X-Repo-Commit": commit}
        if not path.is_file():
            self._refuse(404, "EntryNotFound", "Entry not found", headers)
        elif path.suffix in LFS:
            headers |= {"X-Linked-Size": str(path.stat().st_size), "X-Linked-ETag": f'"{_sha256(path)}"'}
            self._answer(302, headers | {"Location": f"{self.server.hub.cdn_url}/{place}"}, b"Found. Redirecting")
        elif redirect:
            headers["Location"] = f"/api/resolve-cache/models/{place}?etag=x"
            self._answer(307, headers, b"Temporary Redirect")
        else:
            self._send_file(path, headers | {"ETag": f'"{_git_sha1(path)}"'})

    def _describe(self, repository: str, what: str | None, revision: str) -> None:
        if (found := self._access(repository, revision)) is None:
            return
        commit, folder = found
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [path.relative_to(folder).as_posix() for path in paths]
        if what == "tree":
            body = [
                {"type": "file", "path": name, "size": path.stat().st_size, "oid": _git_sha1(path)}
                for name, path in zip(names, paths, strict=True)
            ]
        else:
            body = {"id": repository, "sha": commit, "siblings": [{"rfilename": name} for name in names]}
        self._answer(200, {"Content-Type": "application/json", "X-Repo-Commit": commit}, json.dumps(body).encode())

    def _refuse(self, status: int, code: str | None, message: str, headers: Mapping[str, str] | None = None) -> None:
        code_header = {} if code is None else {"X-Error-Code": code}
        self._answer(
            status,
            {**(headers or {}), **code_header, "X-Error-Message": message},
            json.dumps({"error": message}).encode(),
        )

    def _send_head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, **self.fault.headers}.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()

    def _answer(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        self._send_head(status, {"Content-Length": str(len(body)), **headers})
        if self.command == "GET":
            self.wfile.write(body)

    def _send_file(self, path: Path, headers: Mapping[str, str]) -> None:
        body = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(asked[1]) if asked and not self.fault.no_range else 0
        headers = {**headers, "Accept-Ranges": "bytes", "Content-Length": str(len(body) - start)}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        self._send_head(206 if start else 200, headers)
        if self.command == "HEAD":
            return
        body = body[start:]
        if self.fault.stall_at is not None:
            self.wfile.write(body[: self.fault.stall_at])
            self.fault.stalled.set()
            self.fault.release.wait(30)
            body = body[self.fault.stall_at :]
        self.wfile.write(body[: self.fault.cut_at])
        self.close_connection = self.close_connection or self.fault.cut_at is not None


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _git_sha1(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
