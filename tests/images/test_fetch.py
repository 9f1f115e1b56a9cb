"""Downloads of images: what is asked of a server, and what no server can make us do."""

import ipaddress
import shutil
import socket
import ssl
import subprocess
import threading
import time

import pytest
from web import answer, redirect, serve

from dajax.errors import ConfigError, ImageError
from dajax.images import connect as connect_module
from dajax.images import fetch as fetch_module
from dajax.images.connect import is_public
from dajax.images.fetch import fetch
from dajax.images.urls import redacted

PUBLIC = "93.184.215.14"


@pytest.fixture
def internet(monkeypatch):
    """Names whose addresses the test chooses; connections to public addresses arrive at loopback, and are listed."""
    addresses = {}
    connections = []
    resolve = socket.getaddrinfo

    def getaddrinfo(host, port, **options):
        return [info for ip in addresses.get(host, [host]) for info in resolve(ip, port, **options)]

    def connect(found, deadline):
        connections.append(found[0][1][0])
        return connect_module.connect([(socket.AF_INET, ("127.0.0.1", found[0][1][1]))], deadline)

    monkeypatch.setattr(connect_module.socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(fetch_module, "connect", connect)
    return addresses, connections


def refused(url, match, error=ImageError, **options) -> str:
    with pytest.raises(error, match=match) as caught:
        fetch(url, **options)
    return str(caught.value)


# --- the request ---------------------------------------------------------------------------------------------------


def test_what_is_asked_for():
    with serve({"/a%20b/%C3%A9.png?x=1&y=%20z": answer(b"bytes")}) as site:
        assert fetch(f"{site.url}/a b/é.png?x=1&y= z#part") == b"bytes"
        assert fetch(f"{site.url.upper()}/a%20b/%C3%A9.png?x=1&y=%20z") == b"bytes"
        for request in site.requests:
            lines = request.split("\r\n")
            assert f"Host: 127.0.0.1:{site.port}" in lines
            assert "Accept-Encoding: identity" in lines
            assert not [line for line in lines if line.startswith(("Authorization", "Cookie", "Referer"))]


def test_answers_without_a_length():
    chunked = answer(b"3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\n\r\n", "Transfer-Encoding: chunked", length=-1)
    with serve({"/open": answer(b"abc", length=-1), "/chunked": chunked}) as site:
        assert fetch(f"{site.url}/open") == b"abc"
        assert fetch(f"{site.url}/chunked") == b"abcdefg"


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified", "404 Not Found", "500 Oops", "206 Partial"])
def test_only_200_is_an_answer(status):
    with serve({"/a": answer(b"<html>" * 9, status=status)}) as site:
        refused(f"{site.url}/a", f"a': the server answers {status[:3]} '{status[4:]}'")


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("http://", "no host"),
        ("http:///a.jpg", "no host"),
        ("http://host:99999/", "valid URL"),
        ("http://host:port/", "valid URL"),
        ("http://[1:2/", "valid URL"),
        ("http://a..b/", "valid URL"),
        ("http://" + "a" * 64 + "/", "valid URL"),
        ("http://a b/", "valid URL"),
        ("http://host/\ud800", "valid URL"),
        ("http://host/a\r\nX-Other: 1", "control characters"),
        ("http://host/\n", "control characters"),
        ("http://host/" + "a" * 8000, "8,012 characters"),
        ("file:///etc/passwd", "expected http"),
        ("ftp://host/a", "expected http"),
    ],
)
def test_what_is_no_url(monkeypatch, url, match):
    monkeypatch.setattr(connect_module.socket, "getaddrinfo", None)
    assert refused(url, match).isprintable()


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), 1e9, True])
def test_timeouts_that_are_none(timeout):
    refused("http://host/", "timeout must be a number of seconds", ConfigError, timeout=timeout)


def test_no_one_there(internet, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert "'http://127.0.0.1:" in refused(f"http://127.0.0.1:{port}/", "no connection to 127.0.0.1 .*refused")
    monkeypatch.undo()
    monkeypatch.setattr(
        connect_module.socket,
        "getaddrinfo",
        lambda *_, **__: (_ for _ in ()).throw(socket.gaierror(-2, "Name or service not known")),
    )
    refused("http://nowhere.example/", "no connection to nowhere.example .*not known")


def test_the_next_address_is_tried(monkeypatch):
    with serve({"/": answer(b"here")}) as site, socket.create_server(("127.0.0.1", 0)) as closed:
        dead = closed.getsockname()[1]
        closed.close()
        found = [(socket.AF_INET, 1, 6, "", ("127.0.0.1", port)) for port in (dead, site.port)]
        monkeypatch.setattr(connect_module.socket, "getaddrinfo", lambda *_, **__: found)
        assert fetch("http://two.example/") == b"here"


def test_proxies_of_the_environment_are_not_used(monkeypatch):
    with serve({}) as proxy, serve({"/": answer(b"direct")}) as site:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        assert fetch(site.url) == b"direct"
        assert not proxy.requests
    refused(site.url, "HTTP_PROXY is set, but dajax uses no proxy")


# --- redirects -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_to_public_addresses_are_followed(internet, status):
    addresses, connections = internet
    addresses |= {"one.example": [PUBLIC], "two.example": ["2606:2800:21f:cb07:6820:80da:af6b:8b2c"]}
    answers = {"/a": redirect("b?x=1", f"{status} Go"), "/%C3%A9%20f.png": answer(b"there")}
    with serve(answers) as site:
        answers["/b?x=1"] = redirect(f"//two.example:{site.port}/\xc3\xa9 f.png", f"{status} Go")
        assert fetch(f"http://one.example:{site.port}/a") == b"there"
        assert connections == [PUBLIC, PUBLIC, "2606:2800:21f:cb07:6820:80da:af6b:8b2c"]
        assert f"Host: two.example:{site.port}\r\n" in site.requests[-1]


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1/secret",
        "http://127.9.9.9/",
        "http://localhost/",
        "http://0.0.0.0/",
        "http://[::1]/",
        "http://[::]/",
        "http://169.254.169.254/latest/meta-data/",
        "http://10.1.2.3/",
        "http://172.16.0.1/",
        "http://192.168.1.1/",
        "http://100.64.0.1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0177.0.0.1/",
        "http://127.1/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:a9fe:a9fe]/",
        "http://[64:ff9b::127.0.0.1]/",
        "http://[2002:7f00:1::]/",
        "http://[fd00::1]/",
        "http://[fe80::1]/",
        "http://224.0.0.1/",
        "http://inside.example/",
        "http://user:password@inside.example/",
        "http://both.example/",
        "/on/the/same/host",
    ],
)
def test_redirects_to_private_addresses_are_refused(internet, location):
    addresses, connections = internet
    addresses |= {"inside.example": ["192.168.7.7"], "both.example": [PUBLIC, "10.0.0.1"]}
    with serve({"/a": redirect(location)}) as site:
        message = refused(f"{site.url}/a", "which is not a public address")
        assert "password" not in message
        assert connections == ["127.0.0.1"]
        assert len(site.requests) == 1


def test_a_name_that_changes_its_address(internet, monkeypatch):
    """What is checked is what is connected to: a second look-up is never made."""
    _, connections = internet
    answers = iter([PUBLIC, PUBLIC, "127.0.0.1", "127.0.0.1"])
    info = lambda host, port, **_: [(socket.AF_INET, 1, 6, "", (next(answers), port))]  # noqa: E731
    monkeypatch.setattr(connect_module.socket, "getaddrinfo", info)
    with serve({"/a": redirect("/b"), "/b": redirect("/c"), "/c": answer(b"secret")}) as site:
        refused(f"http://rebinding.example:{site.port}/a", "at 127.0.0.1, which is not a public address")
        assert connections == [PUBLIC, PUBLIC]


@pytest.mark.parametrize(
    ("location", "match"),
    [
        ("file:///etc/passwd", "redirects to 'file:///etc/passwd': expected http"),
        ("ftp://host/a", "expected http"),
        ("data:image/png;base64,AAAA", "expected http"),
        ("gopher://host/", "expected http"),
        ("http://[1:2/", "not a valid URL"),
        ("http://host:99999/", "not a valid URL"),
        ("", "without saying where to"),
    ],
)
def test_redirects_to_nowhere(internet, location, match):
    with serve({"/a": redirect(location)}) as site:
        refused(f"{site.url}/a", match)
        assert len(site.requests) == 1


def test_redirects_end(internet):
    addresses, _ = internet
    addresses["loop.example"] = [PUBLIC]
    with serve({"/a": redirect("/b"), "/b": redirect("/a")}) as site:
        refused(f"http://loop.example:{site.port}/a", "redirects more than 5 times")
        assert len(site.requests) == 6


def test_credentials_stay_where_they_belong(internet):
    addresses, _ = internet
    addresses |= {"one.example": [PUBLIC], "two.example": [PUBLIC]}
    answers = {"/a": redirect("/b"), "/c": answer(b"end")}
    with serve(answers) as site, serve({"/c": answer(b"other")}) as other:
        answers["/b"] = redirect(f"http://x:y@two.example:{site.port}/c")
        assert fetch(f"http://us%C3%A9r:p%40ss@one.example:{site.port}/a") == b"end"
        sent = ["Authorization: Basic dXPDqXI6cEBzcw==" in request for request in site.requests]
        assert sent == [True, True, False]
        assert "Authorization" not in site.requests[2]
        # Another port is another server.
        answers["/b"] = redirect(f"http://one.example:{other.port}/c")
        assert fetch(f"http://user:pass@one.example:{site.port}/a") == b"other"
        assert "Authorization" not in other.requests[0]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:secret@host.example:8/a.jpg?signature=secret#secret", "'https://host.example:8/a.jpg?…'"),
        ("https://host/a.jpg", "'https://host/a.jpg'"),
        ("http://secret@[1:2/?secret", "'[1:2/'"),
        ("http://host/\n?secret", "'http://host/?…'"),
    ],
)
def test_secrets_are_not_shown(url, shown):
    assert redacted(url) == shown


# --- addresses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["8.8.8.8", PUBLIC, "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"])
def test_public_addresses(address):
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "0.1.2.3", "10.0.0.1", "100.127.0.1", "127.0.0.1", "169.254.169.254", "172.31.255.255"),
        *("192.168.0.1", "198.18.0.1", "203.0.113.1", "224.0.0.251", "239.255.255.250", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "::7f00:1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "64:ff9b:1::1", "100::1", "2001::1"),
        *("2001:db8::1", "2002:a00:1::1", "fc00::1", "fd12:3456::1", "fe80::1", "fec0::1", "ff02::1"),
    ],
)
def test_addresses_that_are_not_public(address):
    assert not is_public(ipaddress.ip_address(address))


# --- size ----------------------------------------------------------------------------------------------------------


def endless(connection, head, piece):
    connection.sendall(head)
    while True:
        connection.sendall(piece)


def test_size_is_bounded(monkeypatch):
    monkeypatch.setattr(fetch_module, "MAX_URL_BYTES", 100_000)
    chunked = answer(b"", "Transfer-Encoding: chunked", length=-1)
    answers = {
        "/fits": answer(bytes(100_000)),
        "/says": answer(b"", length=100_001),
        "/huge": answer(b"", length=10**30),
        "/open": lambda connection: endless(connection, answer(b"", length=-1), bytes(4096)),
        "/lies": lambda connection: endless(connection, answer(b"", "Content-Length: -1", length=-1), bytes(4096)),
        "/word": lambda connection: endless(connection, answer(b"", "Content-Length: x", length=-1), bytes(4096)),
        "/chunked": lambda connection: endless(connection, chunked, b"1000\r\n" + bytes(4096) + b"\r\n"),
        "/chunk": lambda connection: endless(connection, chunked + b"FFFFFFFFFFFF\r\n", bytes(4096)),
    }
    with serve(answers) as site:
        assert len(fetch(f"{site.url}/fits")) == 100_000
        for path in list(answers)[1:]:
            refused(site.url + path, "larger than 100,000 bytes", timeout=5)


def test_what_is_longer_than_it_says_is_cut():
    with serve({"/a": answer(b"abcdef", length=3)}) as site:
        assert fetch(f"{site.url}/a") == b"abc"


@pytest.mark.parametrize(
    "headers", [("Content-Encoding: gzip",), ("Content-Encoding: br, gzip",), ("Transfer-Encoding: gzip, chunked",)]
)
def test_compressed_answers_are_refused(headers):
    with serve({"/a": answer(b"\x1f\x8b" * 9, *headers)}) as site:
        refused(f"{site.url}/a", "sends it compressed")


@pytest.mark.parametrize(
    "reply",
    [
        answer(b"abc", length=9),
        answer(b"9\r\nabc", "Transfer-Encoding: chunked", length=-1),
        answer(b"3\r\nabc\r\n", "Transfer-Encoding: chunked", length=-1),
        b"",
    ],
)
def test_answers_that_break_off(reply):
    with serve({"/a": reply}) as site:
        refused(f"{site.url}/a", "too early|without response")


@pytest.mark.parametrize(
    "reply",
    [
        b"\x89PNG\r\n\x1a\n and so on\n",
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: 1\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        answer(b"zz\r\nabc", "Transfer-Encoding: chunked", length=-1),
    ],
    ids=range(6),
)
def test_answers_that_are_not_http(reply):
    with serve({"/a": reply}) as site:
        message = refused(f"{site.url}/a", "the server's answer is not HTTP|too early")
        assert len(message) < 400


# --- time ----------------------------------------------------------------------------------------------------------


def drip(head):
    def reply(connection):
        connection.sendall(head)
        for _ in range(200):
            connection.sendall(b"1")
            time.sleep(0.05)

    return reply


SLOW = {
    "silence": lambda connection: connection.recv(1),
    "status": drip(b""),
    "headers": drip(b"HTTP/1.1 200 OK\r\nX: "),
    "more headers": lambda connection: endless(connection, b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "body": drip(answer(b"", length=100_000)),
    "chunks": drip(answer(b"", "Transfer-Encoding: chunked", length=-1)),
    "trailer": lambda connection: endless(
        connection, answer(b"0\r\n", "Transfer-Encoding: chunked", length=-1), b"X: 1\r\n"
    ),
}


@pytest.mark.parametrize("reply", SLOW.values(), ids=SLOW.keys())
def test_the_whole_has_a_time_limit(reply):
    with serve({"/a": reply}) as site:
        start = time.monotonic()
        refused(f"{site.url}/a", "not there within 0.3 s|the server's answer", timeout=0.3)
        assert time.monotonic() - start < 5


def test_names_that_are_never_resolved(monkeypatch):
    done = threading.Event()
    monkeypatch.setattr(connect_module.socket, "getaddrinfo", lambda *_, **__: done.wait(9))
    start = time.monotonic()
    refused("http://slow.example/", "not there within 0.2 s", timeout=0.2)
    assert time.monotonic() - start < 5
    done.set()


def test_hosts_that_never_answer(monkeypatch):
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        waiting = []
        for _ in range(4):  # fill the queue: the next one gets no answer
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(address)
        refused(f"http://127.0.0.1:{address[1]}/", "not there within 0.3 s", timeout=0.3)
        monkeypatch.setattr(connect_module, "URL_CONNECT_TIMEOUT", 0.2)
        refused(f"http://127.0.0.1:{address[1]}/", "no answer within 0.2 s", timeout=5)
        for connection in waiting:
            connection.close()


# --- TLS -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: it makes the certificate")
    folder = tmp_path_factory.mktemp("tls")
    names = "subjectAltName=DNS:images.example,IP:127.0.0.1"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test -addext"
    command += " basicConstraints=critical,CA:TRUE -keyout key.pem -out certificate.pem -addext"
    subprocess.run([*command.split(), names], cwd=folder, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return folder / "certificate.pem", context


def test_certificates_are_checked(certificate, internet, monkeypatch):
    path, context = certificate
    addresses, _ = internet
    addresses |= {"images.example": [PUBLIC], "other.example": [PUBLIC]}
    with serve(
        {"/a": answer(b"safe"), "/b": redirect("/a"), "/c": redirect("http://images.example/a")}, context
    ) as site:
        refused(f"{site.url}/a", "the certificate of 127.0.0.1 is not trusted .*self.signed")
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
        assert fetch(f"{site.url}/a") == b"safe"
        assert fetch(f"https://images.example:{site.port}/b") == b"safe"
        refused(f"https://other.example:{site.port}/a", "the certificate of other.example is not trusted .*mismatch")
        refused(f"https://images.example:{site.port}/c", "redirects from https to 'http://images.example/a'")
        refused(f"http://images.example:{site.port}/a", "no connection|too early|not HTTP")


def test_servers_without_tls():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/"
        refused(url, "not there within 0.3 s", timeout=0.3)  # it accepts, and says nothing
        listener.accept()[0].close()

        def plain():
            with listener.accept()[0] as connection:
                connection.recv(1000)
                connection.sendall(answer(b"plain"))

        thread = threading.Thread(target=plain)
        thread.start()
        refused(url, "no connection to 127.0.0.1")
        thread.join()
