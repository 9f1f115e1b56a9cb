"""Names of hosts to connected sockets, within a deadline; and which addresses belong to the public Internet."""

import ipaddress
import queue
import socket
import threading
import time
from typing import Any

from dajax.limits import URL_CONNECT_TIMEOUT

# RFC 6052: IPv6-only networks reach IPv4 hosts under this prefix, so the IPv4 address in it is what counts.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")

SocketAddress = tuple[socket.AddressFamily, Any]


def time_left(deadline: float) -> float:
    """Return the seconds until a moment of `time.monotonic`.

    Raises:
        TimeoutError: it has passed.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the time is up")
    return left


def resolve(host: str, port: int, deadline: float) -> list[SocketAddress]:
    """Return the socket addresses of a host.

    Raises:
        OSError: the name is not known.
        TimeoutError: it was not found out in time.
    """
    answer: queue.SimpleQueue[Any] = queue.SimpleQueue()

    # In a thread, for the system's look-up knows no time-out; without a name server it takes minutes.
    def look_up() -> None:
        try:
            answer.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, ValueError) as error:
            answer.put(error)

    threading.Thread(target=look_up, daemon=True).start()
    try:
        found = answer.get(timeout=time_left(deadline))
    except queue.Empty:
        raise TimeoutError("the name was not resolved in time") from None
    if isinstance(found, Exception):
        raise found
    return [(family, address) for family, _, _, _, address in found]


def first_not_public(addresses: list[SocketAddress]) -> str | None:
    """Return the first address that is not one of the public Internet; None if all are."""
    for _, (host, *_rest) in addresses:
        if not is_public(ipaddress.ip_address(host.partition("%")[0])):
            return str(host)
    return None


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether this is one host of the Internet: not this machine, its network, its cloud's metadata, or a group."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = ipaddress.IPv4Address(address.packed[-4:])
        if inner is not None:
            return is_public(inner)
        if address not in _GLOBAL_UNICAST:
            return False
    return address.is_global and not address.is_multicast


def connect(addresses: list[SocketAddress], deadline: float) -> socket.socket:
    """Connect to the first of the addresses that answers.

    Raises:
        OSError: None does.
        TimeoutError: the deadline has passed.
    """
    failure: OSError = OSError("the host has no address")
    for family, address in addresses:
        connected = socket.socket(family, socket.SOCK_STREAM)
        try:
            connected.settimeout(min(time_left(deadline), URL_CONNECT_TIMEOUT))
            connected.connect(address)
            return connected
        except TimeoutError:
            connected.close()
            time_left(deadline)
            failure = OSError(f"no answer within {URL_CONNECT_TIMEOUT:g} s")
        except OSError as error:
            connected.close()
            failure = error
    raise failure
