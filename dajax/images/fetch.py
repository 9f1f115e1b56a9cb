"""One image from an http(s) URL, within bounds of time, size and place. Nothing else in dajax reads URLs.

The standard library on purpose: the address that is checked must be the one that is connected to, or a name that
resolves differently the second time leads past the check. Clients such as requests and httpx resolve by themselves.
"""

import base64
import http.client
import io
import math
import os
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import quote, unquote_to_bytes, urljoin, urlsplit

from dajax.errors import ConfigError, ImageError, shown
from dajax.images.connect import SocketAddress, connect, first_not_public, resolve, time_left
from dajax.images.urls import redacted
from dajax.limits import MAX_REDIRECTS, MAX_URL_BYTES, MAX_URL_LENGTH, MAX_URL_TIMEOUT, URL_TIMEOUT

_REDIRECTS = (301, 302, 303, 307, 308)
_PORTS = {"http": 80, "https": 443}
# RFC 3986's reserved characters and the percent sign: what people paste is often quoted already.
_SAFE = "!$%&'()*+,/:;=?@[]~"


def fetch(url: str, *, timeout: float | None = None) -> bytes:
    """Download one image.

    The connection is direct: proxies that the environment names are not used. The URL itself may point to any host, in
    the local network too. A redirect to an address that is not public is refused, and so is one from https to http.
    User and password in the URL are sent to its own scheme, host and port only.

    Args:
        url: http:// or https://.
        timeout: seconds for everything together, from the look-up of the name to the last byte. None: 30.

    Returns:
        The bytes as the server has them, at most 100 MB.

    Raises:
        ImageError: the URL is not valid, the host is not reached or not trusted, the answer is not a plain file, or a
            bound is passed. Messages leave out the URL's password and query.
        ConfigError: `timeout` is not a number of seconds.
    """
    timeout = _check_timeout(timeout)
    deadline = time.monotonic() + timeout
    name = redacted(url)
    origin = target = _parse(url, name)
    for hop in range(MAX_REDIRECTS + 1):
        try:
            addresses = resolve(target.host, target.port, deadline)
            if hop and (private := first_not_public(addresses)) is not None:
                raise ImageError(
                    f"{name}: redirects to {redacted(target.url)} at {private}, which is not a public address. If you "
                    f"trust it, pass that URL itself."
                )
            with _response(target, addresses, deadline) as response:
                if response.status not in _REDIRECTS:
                    return _body(response, name)
                location = response.headers.get("Location")
        except ImageError:
            raise
        except TimeoutError as error:
            raise ImageError(
                f"{name}: not there within {timeout:g} s. Pass a larger timeout, or download it first"
                f"{_proxy_hint(target)}"
            ) from error
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: chunk sizes, names of hosts
            raise ImageError(f"{name}: {_reason(error, target)}{_proxy_hint(target)}") from error
        target = _redirected(target, location, origin, name)
    raise ImageError(f"{name}: redirects more than {MAX_REDIRECTS} times")


class _Target(NamedTuple):
    url: str
    scheme: str
    host: str
    port: int
    path: str
    authorization: str | None


def _check_timeout(timeout: Any) -> float:
    if timeout is None:
        return URL_TIMEOUT
    is_number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
    if not is_number or not math.isfinite(timeout) or not 0 < timeout <= MAX_URL_TIMEOUT:
        raise ConfigError(f"timeout must be a number of seconds above 0, at most {MAX_URL_TIMEOUT:g}, got {timeout!r}")
    return float(timeout)


def _parse(url: str, name: str) -> _Target:
    """Take a URL apart. `name` is what messages call it."""
    if len(url) > MAX_URL_LENGTH:
        raise ImageError(f"{name}: the URL has {len(url):,} characters, expected at most {MAX_URL_LENGTH:,}")
    # urlsplit drops newlines and tabs without a word, so that what is checked is not what was written.
    if any(ord(character) < 32 or ord(character) == 127 for character in url):
        raise ImageError(f"{name}: the URL has control characters")
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna").decode()
        port = parts.port
        path = quote(parts.path or "/", safe=_SAFE) + (f"?{quote(parts.query, safe=_SAFE)}" if parts.query else "")
    except ValueError as error:  # UnicodeError is one
        raise ImageError(f"{name}: not a valid URL ({error})") from error
    if parts.scheme not in _PORTS:
        raise ImageError(f"{name}: expected http:// or https://")
    if not host or " " in host:
        raise ImageError(f"{name}: not a valid URL (no host)")
    authorization = None
    if "@" in parts.netloc:
        user, _, password = parts.netloc.rpartition("@")[0].partition(":")
        pair = unquote_to_bytes(user) + b":" + unquote_to_bytes(password)
        authorization = f"Basic {base64.b64encode(pair).decode()}"
    return _Target(url, parts.scheme, host, port or _PORTS[parts.scheme], path, authorization)


def _redirected(target: _Target, location: str | None, origin: _Target, name: str) -> _Target:
    if not location:
        raise ImageError(f"{name}: redirects without saying where to")
    try:
        # http.client reads headers as Latin-1; what a server means is mostly UTF-8.
        url = urljoin(target.url, quote(location.strip().encode("latin-1"), safe=_SAFE + "#"))
    except ValueError as error:
        raise ImageError(f"{name}: redirects to what is not a valid URL ({error})") from error
    found = _parse(url, f"{name}: redirects to {redacted(url)}")
    if target.scheme == "https" and found.scheme == "http":
        raise ImageError(f"{name}: redirects from https to {redacted(url)}, which is not encrypted")
    # Credentials go to whom the caller wrote them for; those that a redirect invents are not used.
    is_same = (found.scheme, found.host, found.port) == (origin.scheme, origin.host, origin.port)
    return found._replace(authorization=origin.authorization if is_same else None)


class _TimedReader(io.RawIOBase):
    """What a socket receives. Every read gets what is left of the whole time: a slow drip ends, too."""

    def __init__(self, connected: socket.socket, deadline: float) -> None:
        self._socket, self._deadline = connected, deadline
        self._raw = connected.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._socket.settimeout(time_left(self._deadline))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


@contextmanager
def _response(target: _Target, addresses: list[SocketAddress], deadline: float) -> Iterator[http.client.HTTPResponse]:
    """Send the request to the first of the addresses that answers; the response's headers are read."""
    connected = connect(addresses, deadline)
    try:
        connection: Any
        if target.scheme == "https":
            context = ssl.create_default_context()
            connected.settimeout(time_left(deadline))
            connected = context.wrap_socket(connected, server_hostname=target.host)
            connection = http.client.HTTPSConnection(target.host, target.port, context=context)
        else:
            connection = http.client.HTTPConnection(target.host, target.port)
        connection.sock = connected

        def timed(sock: socket.socket, **options: Any) -> http.client.HTTPResponse:
            reader: Any = SimpleNamespace(makefile=lambda mode: io.BufferedReader(_TimedReader(sock, deadline)))
            return http.client.HTTPResponse(reader, **options)

        connection.response_class = timed
        connected.settimeout(time_left(deadline))
        connection.request("GET", target.path, headers=_headers(target))
        with connection.getresponse() as response:
            yield response
    finally:
        connected.close()


def _headers(target: _Target) -> dict[str, str]:
    # Identity: a compressed answer of a few kB may unpack to gigabytes, and images are compressed already.
    headers = {"User-Agent": "dajax", "Accept": "image/*, */*;q=0.1", "Accept-Encoding": "identity"}
    if target.authorization is not None:
        headers["Authorization"] = target.authorization
    return headers | {"Connection": "close"}


def _body(response: http.client.HTTPResponse, name: str) -> bytes:
    if response.status != 200:
        raise ImageError(f"{name}: the server answers {response.status} {shown(response.reason)}")
    for header in ("Content-Encoding", "Transfer-Encoding"):
        if response.headers.get(header, "identity").strip().lower() not in ("identity", "chunked", ""):
            raise ImageError(f"{name}: the server sends it compressed ({header}), although it was asked not to")
    if response.length is not None and response.length > MAX_URL_BYTES:
        raise _too_large(name)
    data = bytearray()
    while chunk := response.read1(65536):
        data += chunk
        if len(data) > MAX_URL_BYTES:
            raise _too_large(name)
    if response.length:
        raise ImageError(f"{name}: the connection ended {response.length:,} bytes too early")
    return bytes(data)


def _too_large(name: str) -> ImageError:
    return ImageError(f"{name}: is larger than {MAX_URL_BYTES:,} bytes. Download it first and pass the file.")


def _reason(error: Exception, target: _Target) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate of {target.host} is not trusted ({error.verify_message})"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection ended too early"
    if isinstance(error, OSError):
        return f"no connection to {target.host} ({error.strerror or error})"
    return f"the server's answer is not HTTP ({type(error).__name__}: {shown(str(error))})"


def _proxy_hint(target: _Target) -> str:
    variable = f"{target.scheme}_proxy"
    if not (os.environ.get(variable) or os.environ.get(variable.upper())):
        return ""
    return f". {variable.upper()} is set, but dajax uses no proxy: download the image first and pass the file"
