"""Files appear whole, and faults are reported."""

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
import threading

import fsspec
import pytest

from dajax.batch.local_storage import LOCK, UNFINISHED, LocalStorage
from dajax.batch.remote_storage import RemoteStorage
from dajax.batch.storage_kinds import open_storage
from dajax.errors import ImageError, JobError


@pytest.fixture(params=["local", "memory", "s3"])
def storage(request, tmp_path):
    if request.param == "local":
        return open_storage(tmp_path / "out")
    if request.param == "s3":
        return open_storage(f"{request.getfixturevalue('s3')}/{tmp_path.name}")
    fsspec.filesystem("memory").store.clear()
    return open_storage(f"memory://out{tmp_path.name}")


def read(storage, name):
    with storage.open(name) as file:
        return file.read()


def test_kinds(storage):
    assert isinstance(storage, LocalStorage | RemoteStorage)


def test_commit(storage):
    staged = [(storage.stage(b"one"), "x/1.npy"), (storage.stage(b"two"), "x/y/2.npy")]
    assert not storage.exists("x/1.npy")
    assert storage.commit(staged) == {}
    assert storage.exists("x/1.npy")
    assert read(storage, "x/y/2.npy") == b"two"
    assert storage.size("x/1.npy") == 3
    assert storage.list("x") == (["x/1.npy"] if isinstance(storage, LocalStorage) else ["x/1.npy", "x/y"])
    storage.commit([(storage.stage(b"new"), "x/1.npy")])
    assert read(storage, "x/1.npy") == b"new"
    storage.remove("x/1.npy")
    storage.remove("x/1.npy")
    assert not storage.exists("x/1.npy")


def test_create_only_once(storage):
    assert storage.create(".dajax/job.json", b"mine")
    assert not storage.create(".dajax/job.json", b"yours")
    assert read(storage, ".dajax/job.json") == b"mine"


def test_append(storage):
    storage.append("m/part.jsonl", b"a\n")
    storage.append("m/part.jsonl", b"b\n")
    assert b"".join(read(storage, name) for name in storage.list("m")) == b"a\nb\n"
    assert storage.list("nothing") == []


def test_what_is_unfinished_goes(storage, tmp_path):
    storage.stage(b"one")
    discarded = storage.stage(b"two")
    storage.discard(discarded)
    if isinstance(storage, LocalStorage):
        assert len(os.listdir(tmp_path / "out" / UNFINISHED)) == 1
    storage.clean()
    storage.clean()
    assert not (tmp_path / "out" / UNFINISHED).exists()


def test_without_links(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    storage = LocalStorage(tmp_path)
    assert storage.create("job.json", b"mine")
    assert not storage.create("job.json", b"yours")
    assert (tmp_path / "job.json").read_bytes() == b"mine"


def test_a_name_that_cannot_be_is_that_files_fault(tmp_path):
    storage = LocalStorage(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    names = ["x" * 300, "folder", "file/below", "good"]
    refused = storage.commit([(storage.stage(b"1"), name) for name in names])
    assert set(refused) == set(names[:3])
    assert all(isinstance(error, ImageError) for error in refused.values())
    assert (tmp_path / "good").read_bytes() == b"1"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EMFILE, errno.EDQUOT, errno.EACCES])
@pytest.mark.parametrize("primitive", ["_open", "_write", "_sync", "_rename", "_sync_folder"])
def test_a_fault_that_concerns_all_files_stops_the_job(tmp_path, monkeypatch, primitive, number):
    storage = LocalStorage(tmp_path)

    def fail(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(storage, primitive, fail)
    with pytest.raises(JobError, match=rf"{os.strerror(number)}.*goes on from there"):
        storage.commit([(storage.stage(b"1"), "x/a")])
    monkeypatch.undo()
    if primitive != "_sync_folder":
        assert not (tmp_path / "x" / "a").exists()


def test_the_output_folder_cannot_be_made(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises((JobError, ImageError), match="cannot be written"):
        LocalStorage(tmp_path / "file" / "out").append("m", b"1")


def test_one_process_at_a_time(tmp_path):
    storage = LocalStorage(tmp_path)
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "from pathlib import Path\n"
        "from dajax.batch import local_storage\n"
        "local_storage._PATIENCE = 0.1\n"
        f"with local_storage.LocalStorage(Path({str(tmp_path)!r})).locked(): print('in')\n"
    )
    with storage.locked():
        refused = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "another process works on this job" in refused.stderr
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "in\n"


def test_a_lock_that_a_killed_process_left_to_a_child(tmp_path):
    """A process that is killed between fork and exec of a decoder leaves a child with its descriptors."""
    code = (
        f"import os, sys; sys.path[:0] = {sys.path!r}\n"
        "from pathlib import Path\n"
        "from dajax.batch.local_storage import LocalStorage\n"
        f"lock = LocalStorage(Path({str(tmp_path)!r})).locked()\n"
        "lock.__enter__()\n"
        "if os.fork() == 0:\n"
        "    sys.stdin.read()\n"
        "    os._exit(0)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    assert process.wait() == -signal.SIGKILL
    with open(tmp_path / LOCK) as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    threading.Timer(0.5, process.stdin.close).start()
    with LocalStorage(tmp_path).locked():
        pass


def test_file_systems_without_links_or_flushing_of_folders(tmp_path, monkeypatch):
    real = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    def link(*arguments):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", link)
    storage = LocalStorage(tmp_path)
    assert storage.create("job", b"1")
    assert not storage.create("job", b"2")
    assert storage.commit([(storage.stage(b"1"), "x/a")]) == {}
    assert ((tmp_path / "job").read_bytes(), (tmp_path / "x" / "a").read_bytes()) == (b"1", b"1")
