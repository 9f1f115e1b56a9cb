"""Downloads from a Hub on loopback with the real client: what is had once, what a bad connection leaves behind."""

import errno
import math
import os
import shutil
import subprocess
import sys
import threading

import pytest
from loopback_hub import Fault

from dajax.errors import HubError
from dajax.hub import locate

NAME = "someone/something"


def contents(cache):
    """Everything in a cache that holds, or stands for, some of a file."""
    return [*cache.glob("*/blobs/*"), *cache.glob("*/snapshots/*/*")]


def test_each_file_is_downloaded_once(filled, big, folder):
    for _ in range(2):
        assert locate(NAME, "config.json").read_text() == "{}"
        assert locate(NAME, "model.safetensors").read_bytes() == big
    assert [request.host for request in filled.asked(method="GET")] == ["hub", "cdn"]
    # A new commit that changes nothing but the config.
    later = shutil.copytree(folder, folder.with_name("later"))
    (later / "config.json").write_text("[]")
    filled.push(NAME, later)
    assert locate(NAME, "config.json").read_text() == "[]"
    assert locate(NAME, "model.safetensors").read_bytes() == big
    assert len(filled.asked(method="GET")) == 3


def test_threads_share_one_download(filled, big):
    locate(NAME, "config.json")  # an early client, in threads, may open several sessions and end but one
    filled.requests.clear()
    threads = [threading.Thread(target=locate, args=(NAME, "model.safetensors")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(filled.asked(method="GET")) == 1
    assert locate(NAME, "model.safetensors").read_bytes() == big


@pytest.mark.parametrize("no_range", [False, True])
def test_a_cut_connection_is_taken_up_again(filled, big, monkeypatch, no_range):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 50_000)  # what is lost at a cut
    filled.faults += [
        Fault("model.safetensors", cut_at=100_000),
        Fault("model.safetensors", cut_at=50_000, no_range=no_range),
        Fault("model.safetensors", no_range=no_range),
    ]
    assert locate(NAME, "model.safetensors").read_bytes() == big
    second, third = (request.headers.get("Range") for request in filled.asked(method="GET")[1:])
    assert (second, third) == ("bytes=100000-", "bytes=50000-" if no_range else "bytes=150000-")


FOREVER = math.inf


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"times": FOREVER, "cut_at": 0}, r"the connection to http://127\.0\.0\.1:\d+ failed \(RemoteProtocolError"),
        ({"times": FOREVER, "status": 503}, r"out of order: try again later \(HfHubHTTPError: .*503"),
        ({"times": FOREVER, "stall_at": 1000}, r"the connection to .* failed \(ReadTimeout: .* Try again"),
        (
            {"times": FOREVER, "method": "HEAD", "delay": 0.1},
            r"the connection to .* failed \(ReadTimeout: .* Try again",
        ),
        (
            {"method": "HEAD", "headers": {"X-Linked-Size": "262145"}},
            "file should be of size 262145 but has size 262144",
        ),
        (
            {"method": "HEAD", "headers": {"X-Linked-Size": "262143"}},
            "file should be of size 262143 but has size 262144",
        ),
        ({"method": "HEAD", "status": 200}, "does not answer as the Hub does.*login page"),
        ({"method": "HEAD", "headers": {"X-Linked-ETag": None}}, "does not answer as the Hub does.*ETag"),
    ],
    ids=["cut", "503", "time-out", "slow answer", "too short", "too long", "not a Hub", "no ETag"],
)
def test_a_failed_download_leaves_nothing_that_could_be_taken_for_the_file(
    filled, big, tmp_path, monkeypatch, fault, message
):
    filled.faults.append(fault := Fault("model.safetensors", **fault))
    with monkeypatch.context() as patch:
        if fault.stall_at or fault.delay:
            patch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.05)
            patch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.05)
            patch.setattr("huggingface_hub.file_download._ETAG_RETRY_TIMEOUT", 0.05)
        with pytest.raises(HubError, match=rf"(?s)model\.safetensors of {NAME} could not be had: .*{message}"):
            locate(NAME, "model.safetensors")
    fault.release.set()
    assert contents(tmp_path / "huggingface" / "hub") == []
    with pytest.raises(HubError, match="not in the local cache"):
        locate(NAME, "model.safetensors", local_files_only=True)
    filled.faults.clear()
    assert locate(NAME, "model.safetensors").read_bytes() == big


def test_a_killed_process_leaves_nothing_that_could_be_taken_for_the_file(filled, big, tmp_path):
    fault = Fault("model.safetensors", stall_at=100_000)
    filled.faults.append(fault)
    code = "import sys; from dajax.hub import locate; locate(*sys.argv[1:])"
    command = [sys.executable, "-c", code, NAME, "model.safetensors"]
    with subprocess.Popen(command, env=filled.environment(tmp_path), stderr=subprocess.DEVNULL) as process:
        try:
            assert fault.stalled.wait(30)
        finally:
            process.kill()
    fault.release.set()
    cache = tmp_path / "huggingface" / "hub"
    assert cache.exists()
    with pytest.raises(HubError, match="not in the local cache"):
        locate(NAME, "model.safetensors", cache_dir=cache, local_files_only=True)
    assert locate(NAME, "model.safetensors", cache_dir=cache).read_bytes() == big


@pytest.mark.parametrize("status", [429, 503])
def test_the_client_waits_when_it_is_told_to(filled, status):
    filled.faults += [Fault("config.json", "HEAD", times=2, status=status, headers={"Retry-After": "7"})]
    assert locate(NAME, "config.json").read_text() == "{}"
    assert filled.waits == [8]  # the first failure is not waited for


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (429, "too many requests: wait some minutes"),
        (500, "out of order: try again later"),
        (503, "out of order: try again later"),
        (403, "it is forbidden: may the token read"),
        (400, "could not be had: BadRequestError: Bad request"),
        (451, "could not be had: HfHubHTTPError: .*451"),
    ],
)
def test_errors_of_the_server(filled, status, message):
    filled.faults.append(Fault("config.json", "HEAD", times=FOREVER, status=status))
    with pytest.raises(HubError, match=rf"(?s)config\.json of {NAME} .*{message}"):
        locate(NAME, "config.json")


def test_nobody_listens(filled):
    locate(NAME, "config.json")
    filled.close()
    # What is cached is used, and what is not is an error.
    assert locate(NAME, "config.json").read_text() == "{}"
    with pytest.raises(HubError, match=r"model\.safetensors of .*the connection to .* failed"):
        locate(NAME, "model.safetensors")


# --- the cache's disk ------------------------------------------------------------------------------------------------


def test_a_full_disk(filled, tmp_path, monkeypatch):
    def write(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("huggingface_hub.file_download.http_get", write)
    with pytest.raises(HubError, match=rf"no space is left for it in {tmp_path}/there: pass cache_dir="):
        locate(NAME, "model.safetensors", cache_dir=tmp_path / "there")
    assert contents(tmp_path / "there") == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_may_not_be_written(filled, tmp_path):
    (tmp_path / "there").mkdir(mode=0o500)
    with pytest.raises(HubError, match=rf"no permission to write in {tmp_path}/there: pass cache_dir="):
        locate(NAME, "config.json", cache_dir=tmp_path / "there")


def test_no_permission(filled, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("os.makedirs", refuse)
    with pytest.raises(HubError, match=rf"no permission to write in {tmp_path}/there: pass cache_dir="):
        locate(NAME, "config.json", cache_dir=tmp_path / "there")


def test_a_file_where_the_cache_should_be(filled, tmp_path):
    (tmp_path / "there").write_text("a file")
    with pytest.raises(HubError, match=r"there cannot hold it \(NotADirectoryError.*: pass cache_dir="):
        locate(NAME, "config.json", cache_dir=tmp_path / "there")
