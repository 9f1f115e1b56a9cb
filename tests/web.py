"""Web servers on loopback that say what a test wants, byte for byte."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Answer = bytes | Callable[[socket.socket], None]


class Site:
    """A running server: its address, and the requests that it has got."""

    def __init__(self, port: int, scheme: str) -> None:
        self.port, self.scheme = port, scheme
        self.url = f"{scheme}://127.0.0.1:{port}"
        self.requests: list[str] = []


def answer(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    """A whole response; `length` is what it says of its length (None: the truth, negative: nothing)."""
    lines = [f"HTTP/1.1 {status}", "Connection: close", *headers]
    if length is None or length >= 0:
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def redirect(location: str, status: str = "302 Found") -> bytes:
    return answer(b"", f"Location: {location}", status=status)


@contextmanager
def serve(answers: dict[str, Answer], context: ssl.SSLContext | None = None) -> Iterator[Site]:
    """Serve paths: bytes are sent as they are, a function gets the connection. Other paths are 404."""
    listener = socket.create_server(("127.0.0.1", 0))
    site = Site(listener.getsockname()[1], "http" if context is None else "https")
    workers = []

    def work(connection: socket.socket) -> None:
        # Clients hang up whenever they have seen enough.
        with suppress(OSError), connection:
            connection.settimeout(5)
            if context is not None:
                connection = context.wrap_socket(connection, server_side=True)
            with connection:
                request = b""
                while b"\r\n\r\n" not in request and (data := connection.recv(65536)):
                    request += data
                if not request:
                    return
                site.requests.append(request.decode("latin-1"))
                reply = answers.get(request.split()[1].decode(), answer(b"nothing here", status="404 Not Found"))
                if callable(reply):
                    reply(connection)
                else:
                    connection.sendall(reply)

    def accept() -> None:
        with suppress(OSError):  # closed
            while True:
                worker = threading.Thread(target=work, args=(listener.accept()[0],), daemon=True)
                worker.start()
                workers.append(worker)

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield site
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join(5)
        for worker in workers:
            worker.join(5)
