"""Which file is chosen: the first of several, revisions, what is cached; and which names are refused."""

import math
import shutil

import pytest
from loopback_hub import Fault
from refusal import refused

from dajax.errors import HubError
from dajax.hub import locate, locate_first

NAME = "someone/something"
FOREVER = math.inf


# --- the first of several ---------------------------------------------------------------------------------------------


def test_the_first_that_is_there(filled, folder):
    (folder / "b.bin").write_bytes(b"b")
    (folder / "c.bin").write_bytes(b"c")
    assert locate_first(NAME, ["a.bin", "b.bin", "c.bin"]).read_bytes() == b"b"
    assert not filled.asked(file="c.bin")
    # An answer that the client does not remember.
    filled.faults.append(Fault("d.bin", "HEAD", status=404, headers={"X-Error-Code": "EntryNotFound"}))
    assert locate_first(NAME, ["d.bin", "b.bin"]).read_bytes() == b"b"
    # Offline, the first that is cached.
    assert locate_first(NAME, ["c.bin", "a.bin", "b.bin"], local_files_only=True).read_bytes() == b"b"


def test_none_is_there(filled, monkeypatch):
    with pytest.raises(
        HubError, match=rf"^a\.bin, b\.bin or c\.bin of {NAME} is not in the repository \(revision main"
    ):
        locate_first(NAME, ["a.bin", "b.bin", "c.bin"])
    with pytest.raises(HubError, match=r"^a\.bin or b\.bin of .* is not in the local cache, and local_files_only is"):
        locate_first(NAME, ["a.bin", "b.bin"], local_files_only=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"config\.json of .* is not in the local cache, and HF_HUB_OFFLINE is set: dow"):
        locate_first(NAME, ["config.json"])
    with pytest.raises(HubError, match="no file was asked for"):
        locate_first(NAME, [])


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
def test_only_a_missing_file_leads_to_the_next(filled, status):
    filled.faults.append(Fault("model.safetensors", "HEAD", times=FOREVER, status=status))
    with pytest.raises(HubError, match=rf"^model\.safetensors of {NAME} could not be had"):
        locate_first(NAME, ["model.safetensors", "config.json"])
    assert not filled.asked(file="config.json")


def test_a_missing_file_is_remembered_when_nobody_listens(filled):
    files = ["missing.safetensors", "model.safetensors"]
    path = locate_first(NAME, files)
    filled.close()
    assert locate_first(NAME, files) == path
    with pytest.raises(HubError, match=r"^other\.safetensors .* the connection to"):
        locate_first(NAME, ["other.safetensors", *files])
    with pytest.raises(HubError, match=r"^missing\.safetensors of .* is not in the repository"):
        locate(NAME, "missing.safetensors")


# --- revisions, names, offline ----------------------------------------------------------------------------------------


def test_revisions(filled, folder):
    old = shutil.copytree(folder, folder.with_name("old"))
    (old / "config.json").write_text('"old"')
    commit = filled.push(NAME, old, "v1.0")
    filled.push(NAME, old, "refs/pr/1")
    for revision in ("v1.0", "refs/pr/1", commit):
        path = locate(NAME, "config.json", revision=revision)
        assert path.read_text() == '"old"'
        assert path.parent.name == commit
    assert locate(NAME, "config.json").read_text() == "{}"
    with pytest.raises(HubError, match="the repository has no branch, tag or commit 'v2'"):
        locate(NAME, "config.json", revision="v2")


def test_a_cached_commit_needs_no_request(filled, folder, tmp_path):
    commit = filled.push(NAME, folder)
    files = ["missing.safetensors", "model.safetensors"]
    options = {"revision": commit, "cache_dir": tmp_path / "mine"}
    path = locate_first(NAME, files, **options)
    filled.requests.clear()
    assert locate_first(NAME, files, **options) == path
    with pytest.raises(HubError, match=rf"missing.safetensors of .* is not in the repository \(revision {commit}"):
        locate(NAME, "missing.safetensors", **options)
    assert not filled.requests


def test_local_files_only_asks_nobody(filled):
    path = locate(NAME, "config.json")
    filled.requests.clear()
    assert locate(NAME, "config.json", local_files_only=True) == path
    with pytest.raises(HubError, match="not in the local cache"):
        locate(NAME, "model.safetensors", local_files_only=True)
    assert not filled.requests


def test_cache_dir(filled, tmp_path):
    path = locate(NAME, "config.json", cache_dir=tmp_path / "mine")
    assert path.is_relative_to(tmp_path / "mine")
    assert not (tmp_path / "huggingface").exists()


OUTSIDE = ["../x", "/x", "a/../../x", "a\\..\\x", "C:x", "C:/x", "\\\\host\\x", "a//b", "", ".", "..", "a\0b", "a\nb"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_name_leaves_the_cache(filled, tmp_path, name):
    before = set(tmp_path.rglob("*"))
    for call, message in [
        (lambda: locate(NAME, name), "is not the name of a file in a repository"),
        (lambda: locate(NAME, "config.json", revision=name), "revision must be a branch, a tag or a commit"),
        (lambda: locate(name, "config.json"), "a repository is named owner/name"),
    ]:
        refused(call, HubError, message)
    assert set(tmp_path.rglob("*")) == before
    assert not filled.requests


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"revision": 5}, "revision must be a branch, a tag or a commit, got 5"),
        ({"revision": "0" * 40 + "\n"}, "revision must be"),
        ({"token": 5}, "token must be a string, True, False or None, got int"),
        ({"cache_dir": 5}, "cache_dir must be a folder, got 5"),
        ({"cache_dir": "~nobody-of-this-name/x"}, "cache_dir must be a folder, got '~nobody"),
        ({"cache_dir": "a\0b"}, "could not be had: ValueError"),
    ],
)
def test_wrong_options(filled, options, message):
    with pytest.raises(HubError, match=message):
        locate(NAME, "config.json", **options)
    assert not filled.requests


def test_what_the_server_says_is_shown_in_one_line(filled):
    said = "\x9b31mred " + "long " * 1000  # begins with what makes a terminal write in red
    filled.faults.append(Fault("config.json", "HEAD", FOREVER, status=403, headers={"X-Error-Message": said}))
    with pytest.raises(HubError, match="31mred long") as caught:
        locate(NAME, "config.json")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400
