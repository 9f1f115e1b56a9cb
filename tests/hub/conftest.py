"""A repository with one small file and one big file, on a Hub on loopback."""

import pytest


@pytest.fixture(scope="session")
def big():
    """More than any buffer between client and server holds, so that a connection can be cut in its middle."""
    return bytes(range(256)) * 1024


@pytest.fixture
def folder(tmp_path, big):
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(big)
    return folder


@pytest.fixture
def filled(hub, folder):
    hub.push("someone/something", folder)
    return hub
