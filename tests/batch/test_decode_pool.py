"""Decoder processes: results are in order, and no process can hold up a job."""

import os
import re
import signal
import struct
import subprocess
import sys
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from batch_jobs import make_images

from dajax.batch import decode_pool as module
from dajax.batch.decode_pool import Decoders
from dajax.batch.items import Item, Location, find_items
from dajax.errors import JobError
from dajax.images.read import read_image
from dajax.preprocessing.buckets import Buckets
from dajax.preprocessing.processor import DepthImageProcessor

BUCKETS = Buckets(DepthImageProcessor(input_size=28), None)


@pytest.fixture
def pool(request):
    pools = []

    def make(**options):
        pools.append(Decoders(**{"count": 2, "options": BUCKETS.options(), "timeout": 30, "ahead": 4} | options))
        return pools[-1]

    yield make
    for one in pools:
        one.close()


def test_same_pixels_in_order(tmp_path, pool):
    source = find_items(make_images(tmp_path))
    found = list(pool().read(source.items))
    assert [decoded.item for decoded in found] == source.items
    for decoded in found:
        if decoded.item.key.split("/")[1].startswith("bad"):
            assert decoded.image is None
            assert decoded.reason
            continue
        expected = BUCKETS.process(read_image(decoded.item.location.path))
        np.testing.assert_array_equal(decoded.image.pixels, expected.pixels)
        assert decoded.image.source_size == expected.source_size
        assert decoded.image.content == expected.content


def test_how_images_are_read(tmp_path, pool):
    """The job's value range and --partial reach `read_image` in the other process."""
    from PIL import Image

    grey = np.arange(3000, 3000 + 32 * 48, dtype=np.uint16).reshape(32, 48)
    Image.fromarray(grey).save(tmp_path / "a.png")
    Image.fromarray(np.repeat(grey[:, :, None] % 256, 3, axis=2).astype(np.uint8)).save(tmp_path / "b.jpg")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:-100])
    source = find_items(tmp_path)
    for value_range in ("auto", (3000, 4535)):
        wide, cut = pool(reading={"value_range": value_range, "allow_truncated": True}).read(source.items)
        expected = BUCKETS.process(read_image(tmp_path / "a.png", value_range=value_range))
        np.testing.assert_array_equal(wide.image.pixels, expected.pixels)
        assert "is truncated; what is missing is blank" in cut.notes[0]
    wide, cut = pool().read(source.items)
    assert "of 256 greys" in wide.notes[0]
    assert "is truncated" in cut.reason


def test_part_of_a_file_and_a_remote_one(tmp_path, pool):
    import fsspec

    path = make_images(tmp_path, good=1, bad=0) / "set0" / "image 0.jpg"
    data = path.read_bytes()
    (tmp_path / "packed").write_bytes(b"before" + data + b"after")
    fsspec.filesystem("file").pipe_file(str(tmp_path / "remote.jpg"), data)
    items = [
        Item("whole", Location(str(path))),
        Item("part", Location(str(tmp_path / "packed"), 6, len(data))),
        Item("remote", Location(f"file://{tmp_path}/remote.jpg")),
        Item("part of remote", Location(f"file://{tmp_path}/packed", 6, len(data))),
        Item("missing", Location(f"file://{tmp_path}/missing.jpg")),
    ]
    *found, missing = pool().read(items)
    for decoded in found:
        np.testing.assert_array_equal(decoded.image.pixels, found[0].image.pixels)
    assert missing.image is None
    assert missing.reason


def test_what_the_reader_says(tmp_path, pool):
    from PIL import Image

    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    (decoded,) = pool().read(find_items(tmp_path).items)
    (note,) = decoded.notes
    assert "several frames" in note


@pytest.fixture
def hanging(tmp_path, monkeypatch):
    """Return an item that reading never returns from, which no check of the file itself can find."""
    plugin = tmp_path / "plugin"
    plugin.mkdir()
    (plugin / "sitecustomize.py").write_text(
        "import fsspec, time\n"
        "from fsspec.implementations.local import LocalFileSystem\n"
        "class Hang(LocalFileSystem):\n"
        "    protocol = 'hang'\n"
        "    def cat_file(self, *arguments, **options):\n"
        f"        open({str(tmp_path / 'is-read')!r}, 'w').close()\n"
        "        while True: time.sleep(1)\n"
        "fsspec.register_implementation('hang', Hang)\n"
    )
    monkeypatch.syspath_prepend(str(plugin))
    return Item("hangs", Location("hang://x.jpg"))


def test_an_image_that_hangs_costs_its_time_and_one_reject(tmp_path, pool, hanging, monkeypatch):
    make_images(tmp_path / "images", good=4, bad=0)
    items = find_items(tmp_path / "images").items
    started, real = [], subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **options: started.append(real(*a, **options)) or started[-1])
    decoders = pool(timeout=3)
    before = time.monotonic()
    found = list(decoders.read([items[0], hanging, *items[1:]]))
    seconds = time.monotonic() - before
    # The process that hung was ended at once, not when all is over.
    assert sum(process.poll() is not None for process in started) == 1
    assert [decoded.image is None for decoded in found] == [False, True, False, False, False]
    assert found[1].reason == "it was not read within 3 seconds"
    assert 3 <= seconds < 20


def test_no_more_is_read_ahead_than_said(tmp_path, pool):
    items = find_items(make_images(tmp_path, good=8, bad=0)).items
    taken = []
    found = pool(ahead=3).read(item for item in items if taken.append(item) is None)
    next(found)
    assert len(taken) == 3
    assert len(list(found)) == 7


def request(path):
    return {"name": path, "path": path, "offset": 0, "size": None, "has_data": False, "needs_stamp": True}


def test_warnings_for_developers_are_no_notes(monkeypatch):
    from dajax.batch import decoder_process

    def read(*arguments, **options):
        warnings.warn("for developers", DeprecationWarning, stacklevel=1)
        warnings.warn("for users", UserWarning, stacklevel=1)
        return np.zeros((28, 28, 3), np.uint8)

    monkeypatch.setattr(decoder_process, "read_image", read)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        answer, _ = decoder_process.answered(request("x.jpg"), None, BUCKETS)
    assert answer["notes"] == ["for users"]


def png_header(width, height):
    """Return a PNG of this size (PNG specification, sections 5.3 and 11.2.2) without pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    found = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", b"")):
        found += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return found


def test_reasons_advise_nothing_that_a_job_cannot_do(tmp_path):
    """The library's advice is for its callers: a job passes few arguments to its reader."""
    from PIL import Image

    from dajax.batch.decoder_process import answered

    (tmp_path / "huge.png").write_bytes(png_header(20_000, 20_000))
    Image.fromarray(np.full((3, 3), 7.5, np.float32)).save(tmp_path / "float.tif")
    (tmp_path / "folder.jpg").mkdir()
    said = {path.name: answered(request(str(path)), None, BUCKETS)[0]["error"] for path in tmp_path.iterdir()}
    said["missing"] = answered(request(str(tmp_path / "missing.jpg")), None, BUCKETS)[0]["error"]
    assert said["huge.png"].endswith("400,000,000 pixels are more than the limit of 200,000,000.")
    assert "floating-point" in said["float.tif"]
    assert "it is a folder" in said["folder.jpg"]
    assert said["missing"].lower().count("no such file") == 1
    for text in said.values():
        assert not re.search(r"[Pp]ass (?!value_range)|max_pixels|find_images", text), text


def test_a_part_of_a_file_is_called_by_its_key(tmp_path, pool):
    (tmp_path / "s.tar").write_bytes(b"no image" * 10)
    (decoded,) = pool().read([Item("s.tar/a.jpg", Location(str(tmp_path / "s.tar"), 8, 8))])
    assert decoded.reason.startswith("'s.tar/a.jpg': is not an image")


def test_memory_that_is_short_for_one_image_is_that_images_fault(monkeypatch):
    from dajax.batch import decoder_process

    def read(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr(decoder_process, "read_image", read)
    answer, pixels = decoder_process.answered(request("x.jpg"), None, BUCKETS)
    assert (answer, pixels) == ({"error": "there is not enough memory to read it", "machine": False, "stamp": ""}, None)


def test_a_process_that_dies_is_tried_once_more(tmp_path, pool, monkeypatch):
    make_images(tmp_path, good=3, bad=0)
    items = find_items(tmp_path).items
    real = module._Process.ask
    deaths = []

    def dying(self, request, data, timeout):
        if b"image 1" in request and len(deaths) < most:
            deaths.append(os.kill(self._process.pid, signal.SIGKILL))
            self._process.wait()
        return real(self, request, data, timeout)

    monkeypatch.setattr(module._Process, "ask", dying)
    most = 1
    assert all(decoded.image is not None for decoded in pool(count=1).read(items))
    deaths.clear()
    most = 2
    found = {decoded.item.key: decoded for decoded in pool(count=1).read(items)}
    assert found["set1/image 1.png"].reason == "the process that reads images died on it, twice (signal 9)"
    assert sum(decoded.image is None for decoded in found.values()) == 1


def test_too_many_open_files_is_no_images_fault(tmp_path, pool, monkeypatch):
    items = find_items(make_images(tmp_path, good=2, bad=0)).items
    monkeypatch.setattr(module._Process, "ask", lambda *a: ({"error": "Too many open files", "machine": True}, None))
    with pytest.raises(JobError, match="Too many open files"):
        list(pool().read(items))


def test_no_process_can_be_started(tmp_path, pool, monkeypatch):
    items = find_items(make_images(tmp_path, good=2, bad=0)).items

    def none(*arguments, **options):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(subprocess, "Popen", none)
    with pytest.raises(JobError, match=r"no process .* can be started \(Too many open files\)"):
        list(pool().read(items))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc: run it on Linux")
def test_nothing_outlives_a_killed_job(tmp_path, hanging):
    """Neither a process that waits for an image, nor one that hangs on one."""
    items = find_items(make_images(tmp_path / "images", good=2, bad=0)).items
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "import time\n"
        "from pathlib import Path\n"
        "from dajax.batch.decode_pool import Decoders\n"
        "from dajax.batch.items import Item, Location\n"
        f"pool = Decoders(2, {BUCKETS.options()!r}, timeout=60, ahead=3)\n"
        f"found = pool.read([Item('a', Location({items[0].location.path!r}))] * 4 + [{hanging!r}])\n"
        "next(found)\n"
        "time.sleep(0.1)\n"
        "for _ in range(3): next(found)\n"
        f"while not Path({str(tmp_path / 'is-read')!r}).exists(): time.sleep(0.01)\n"
        "print(*[w._process.pid for w in pool._workers], flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        workers = [int(pid) for pid in process.stdout.readline().split()]
        process.kill()
    assert len(workers) == 2
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in workers)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_modules_beside_the_images_are_not_imported(tmp_path, pool, monkeypatch):
    items = find_items(make_images(tmp_path, good=2, bad=0)).items
    for name in ("random", "copy", "PIL"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\nraise SystemExit(7)\n")
    monkeypatch.chdir(tmp_path)
    assert all(decoded.image is not None for decoded in pool().read(items))
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise SystemExit(5)", r"ended before it was ready \(status 5\)"),
        ("import time; time.sleep(60)", "was not ready within 0.5 seconds"),
    ],
)
def test_a_process_that_does_not_get_ready_is_no_images_fault(tmp_path, pool, monkeypatch, code, message):
    items = find_items(make_images(tmp_path, good=2, bad=0)).items
    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda _, **options: real([sys.executable, "-c", code], **options))
    monkeypatch.setattr(module, "_START_S", 0.5)
    with pytest.raises(JobError, match=message):
        list(pool().read(items))


class Silent:
    """A connection on which nothing comes; or something, after some polls."""

    def __init__(self, silent=10**9):
        self.slices, self.silent = [], silent

    def poll(self, seconds):
        self.slices.append(seconds)
        return len(self.slices) > self.silent


def waiting_on(connection):
    process = object.__new__(module._Process)
    process._connection = connection
    return process


def test_time_in_which_everything_stood_still_is_not_counted():
    """Ctrl-Z for an hour ends one poll, whatever its length; after that the image still has the rest of its time."""
    connection = Silent(9)
    waiting_on(connection)._wait(60)
    assert connection.slices == [1.0] * 10
    connection = Silent()
    with pytest.raises(TimeoutError):
        waiting_on(connection)._wait(0.5)
    assert sum(connection.slices) == pytest.approx(0.5)
    connection = Silent(100)
    waiting_on(connection)._wait(float("inf"))
    assert max(connection.slices) == 1.0


def test_a_process_that_cannot_be_killed_is_given_up(monkeypatch):
    """One that hangs within the kernel, on a file system that does not answer."""

    class Hanging:
        def kill(self):
            pass

        def wait(self, timeout=None):
            assert timeout is not None
            raise subprocess.TimeoutExpired("decoder", timeout)

    process = waiting_on(type("Connection", (), {"close": lambda self: None})())
    process._process = Hanging()
    assert process.end() == -signal.SIGKILL


@pytest.mark.parametrize(
    ("error", "machine"),
    [
        (FileNotFoundError(2, "No such file"), False),
        (PermissionError(13, "Permission denied"), False),
        (OSError(5, "Input/output error"), False),
        (OSError(116, "Stale file handle"), True),
        (ConnectionResetError(104, "Connection reset by peer"), True),
        (TimeoutError("timed out"), True),
        (RuntimeError("the client's own"), True),
    ],
)
def test_what_concerns_a_whole_bucket_is_no_images_fault(error, machine):
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    from dajax.batch.decoder_process import answered

    class Away(LocalFileSystem):
        protocol = "away"

        def cat_file(self, *arguments, **options):
            raise error

    fsspec.register_implementation("away", Away, clobber=True)
    answer, pixels = answered(request("away:///x.jpg"), None, BUCKETS)
    assert (answer["machine"], pixels) == (machine, None)
    assert answer["error"]
