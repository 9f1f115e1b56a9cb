"""What a text means: a URL, a data URL, a file, or base64; and that only URLs open a socket."""

import base64
import io
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from seeded import make_image
from web import answer, serve

from dajax.errors import ConfigError, ImageError
from dajax.images.image_sources import read_source

IMAGE = make_image(9, 12)


def encoded(kind="PNG", image=IMAGE) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return stream.getvalue()


PNG = encoded()
TEXT = base64.b64encode(PNG).decode()


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a socket was opened")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)


def refused(source, match, error=ImageError, **options) -> str:
    with pytest.raises(error, match=match) as caught:
        read_source(source, **options)
    assert len(str(caught.value)) < 800
    return str(caught.value)


# --- text ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        base64.encodebytes(PNG).decode(),  # with line ends
        f"data:image/png;base64,{TEXT}",
        f"data:;base64,{TEXT}",
        f"DATA:text/plain;charset=utf-8;name=a.b;BASE64,{TEXT}",
        f"data:image/jpeg;base64,{TEXT.replace('+', '%2B').replace('/', '%2F').replace('=', '%3D')}",
    ],
    ids=range(6),
)
def test_base64(text):
    np.testing.assert_array_equal(read_source(text), IMAGE)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"])
def test_base64_of_every_format(kind):
    data = encoded(kind)
    np.testing.assert_array_equal(read_source(base64.b64encode(data).decode()), read_source(data))


@pytest.mark.usefixtures("offline")
def test_a_file_comes_before_base64(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = make_image(7, 7)
    text = base64.b64encode(encoded("GIF", make_image(1, 1))).decode().replace("/", "+")
    assert len(text) < 255
    for name in ("image.png", text[:200]):
        Path(name).write_bytes(encoded("PNG", other))
        np.testing.assert_array_equal(read_source(name), other)
    Path("folder").mkdir()
    refused("folder", "is a folder")
    Path("dangling").symlink_to("nowhere")
    refused("dangling", "No such file")


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    "text",
    [
        "",
        "image",
        "image.jpg",
        "Qk12",
        "images/summer/room",
        "/9j/image",
        "iVBORw0KGgo=",
        "R0lGODlhAQABAAAAACw=",
        "s3://bucket/a.jpg",
        "file:///images/a.jpg",
        "C:\\images\\a.jpg",
        "nul\0.jpg",
        "x" * 400,  # base64, but of no image
        base64.b64encode(b"<!doctype html><html>" * 9).decode(),
        TEXT[:-1],  # its padding is cut
        TEXT.replace("A", "-", 1),
        TEXT[:40] + "." + TEXT[40:],
        "é" * 400,
    ],
)
def test_other_text_is_a_file_that_is_not_there(text):
    assert "no such file, and not a URL" in refused(text, "Check the path")


def test_base64_that_is_damaged():
    message = refused(base64.b64encode(PNG[:200]).decode(), "no such file; taken as base64: .*truncated")
    assert message.startswith("'iVBORw0KGgo")
    assert "…" in message  # not all of it


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("data:image/png,abc", "expected data:image/…;base64"),
        (
            "data:image/svg+xml;base64," + base64.b64encode(b"<svg></svg>").decode(),
            "not an image in one of the formats",
        ),
        ("data:image/png;base64,", "is empty"),
        ("data:image/png;base64,????", "is not base64"),
        ("data:image/png;base64," + TEXT[:-1], "is not base64"),
        ("data:text/html;base64," + base64.b64encode(b"<html>hello").decode(), "HTML or XML page"),
        ("data:", "expected data:image"),
    ],
)
def test_data_urls_that_are_no_images(text, match):
    assert refused(text, match).startswith(f"data URL of {len(text)} characters")


def test_too_much_base64(monkeypatch):
    monkeypatch.setattr("dajax.images.image_sources.MAX_IMAGE_BYTES", 100)
    refused(TEXT, "Check the path")


# --- URLs ----------------------------------------------------------------------------------------------------------


def test_urls_are_downloaded_where_that_is_allowed():
    with serve({"/a.png?key=secret": answer(PNG)}) as site:
        url = f"{site.url}/a.png?key=secret"
        message = refused(url, "allow_urls=True")
        assert not site.requests
        assert "secret" not in message
        np.testing.assert_array_equal(read_source(url, allow_urls=True), IMAGE)


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (b"<!DOCTYPE html><title>Sign in</title>", "is an HTML or XML page, not an image"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-LFS pointer"),
        (PNG[:300], "truncated"),
        (b"", "is empty"),
    ],
)
def test_downloads_that_are_no_images(body, match):
    with serve({"/a.png?key=secret": answer(body)}) as site:
        message = refused(f"{site.url}/a.png?key=secret", match, allow_urls=True)
        assert message.startswith(f"'{site.url}/a.png?…': ")


def test_timeouts_reach_the_download():
    with serve({"/a": lambda connection: connection.recv(1)}) as site:
        refused(f"{site.url}/a", "not there within 0.2 s", allow_urls=True, timeout=0.2)
        refused(f"{site.url}/a", "timeout", ConfigError, allow_urls=True, timeout=0)


# --- all else ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("offline")
def test_all_that_read_image_takes(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    for source in (path, PNG, io.BytesIO(PNG), Image.open(path), IMAGE, IMAGE / 255):
        np.testing.assert_array_equal(read_source(source, allow_urls=True), IMAGE)
    np.testing.assert_array_equal(read_source(IMAGE.transpose(2, 0, 1), layout="CHW"), IMAGE)
    np.testing.assert_array_equal(read_source(IMAGE / 127.5 - 1, value_range=(-1, 1)), IMAGE)
    # Only text is text: encoded bytes and paths mean themselves.
    refused(TEXT.encode(), "not an image")
    refused(Path(f"data:image/png;base64,{TEXT[:40]}"), "No such file")
