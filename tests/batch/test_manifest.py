"""The manifest: every whole row counts, wherever the last one is cut off."""

import json
import os
import subprocess
import sys

import pytest

from dajax.batch.local_storage import LocalStorage
from dajax.batch.manifest import DONE, LOST, REJECTED, Known, Manifest, Row, stamp_number
from dajax.depth_maps.naming import digest
from dajax.errors import JobError

STRANGE = ["a.jpg", 'quote" and \\', '", "status": "done', "new\nline", "caf\udce9", "\u00e9", "\U0001f600", "\0"]

QUALITY = {"mean": 1.23456, "spread": 0.654321, "at_low": 0.01, "at_high": 0.000123}
STAMP = "size=123456 mtime_ns=1767225600123456789"


def written(tmp_path, rows):
    manifest = Manifest(LocalStorage(tmp_path))
    manifest.append(rows)
    return manifest


def statuses(manifest, keys):
    return manifest.known().look_up(keys)[0].tolist()


def test_rows_come_back(tmp_path):
    rows = [
        Row(key, "done", [f"{i}.npy"], ["0" * 64], [3, 4], notes=["animated"], time="t")
        for i, key in enumerate(STRANGE)
    ]
    rows.append(Row("bad.jpg", "rejected", reason='damaged "badly"\n', time="t"))
    manifest = written(tmp_path, rows)
    assert list(manifest.rows()) == rows
    assert statuses(manifest, [*STRANGE, "bad.jpg", "other"]) == [DONE] * 8 + [REJECTED, 0]
    assert manifest.rejects() == rows[-1:]
    for line in (tmp_path / manifest.parts()[0]).read_bytes().splitlines():
        assert line.isascii()
        json.loads(line)


def test_the_last_row_of_a_key_counts(tmp_path):
    first = written(tmp_path, [Row("a", "rejected", reason="x"), Row("b", "done"), Row("c", "done")])
    second = written(tmp_path, [Row("a", "done"), Row("b", "lost", reason="gone")])
    assert len(first.parts()) == 2
    assert {key: row.status for key, row in second.latest().items()} == {"a": "done", "b": "lost", "c": "done"}
    assert statuses(second, ["a", "b", "c"]) == [DONE, LOST, DONE]
    assert second.rejects() == []


@pytest.mark.parametrize("group", [1, 3])
def test_torn_at_every_byte(tmp_path, group):
    manifest = written(tmp_path, [Row(key, "done", [key], ["0" * 64], [1, 1]) for key in STRANGE[:-group]])
    (part,) = (tmp_path / ".dajax" / "manifest").iterdir()
    whole = part.stat().st_size
    manifest.append([Row(key, "done", [key], ["0" * 64], [1, 1]) for key in STRANGE[-group:]])
    data = part.read_bytes()
    for size in range(whole, len(data) + 1):
        part.write_bytes(data[:size])
        found = Manifest(LocalStorage(tmp_path))
        complete = len(STRANGE) - group + data[whole:size].count(b"\n")
        assert [row.key for row in found.rows()] == STRANGE[:complete]
        assert statuses(found, STRANGE) == [DONE] * complete + [0] * (len(STRANGE) - complete)


def test_zeros_behind_a_torn_row(tmp_path):
    """Some file systems leave this after a power cut."""
    manifest = written(tmp_path, [Row("a", "done"), Row("b", "done")])
    part = tmp_path / manifest.parts()[0]
    part.write_bytes(part.read_bytes()[:-20] + bytes(4000))
    assert [row.key for row in Manifest(LocalStorage(tmp_path)).rows()] == ["a"]


def test_zeros_within_the_last_row(tmp_path):
    """The end of the row reached the disk, but the part before it did not."""
    manifest = written(tmp_path, [Row("a", "done"), Row("b", "done")])
    part = tmp_path / manifest.parts()[0]
    data = bytearray(part.read_bytes())
    data[-40:-20] = bytes(20)
    part.write_bytes(data)
    assert [row.key for row in Manifest(LocalStorage(tmp_path)).rows()] == ["a"]
    assert statuses(Manifest(LocalStorage(tmp_path)), ["a", "b"]) == [DONE, 0]


def test_damage_in_the_middle_is_named(tmp_path):
    manifest = written(tmp_path, [Row("a", "done"), Row("b", "done"), Row("c", "done")])
    part = tmp_path / manifest.parts()[0]
    lines = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(lines[0] + lines[1][:30] + b"\n" + lines[2])
    with pytest.raises(JobError, match=rf"jsonl: the row at byte {len(lines[0])} is damaged"):
        Manifest(LocalStorage(tmp_path)).known()


def test_nothing_behind_a_row_that_could_not_be_written(tmp_path, monkeypatch):
    storage = LocalStorage(tmp_path)
    manifest = Manifest(storage)
    manifest.append([Row("a", "done")])

    def full(descriptor, data):
        os.write(descriptor, data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "_write", full)
    with pytest.raises(JobError, match="No space left"):
        manifest.append([Row("b", "done")])
    monkeypatch.undo()
    with pytest.raises(JobError, match="nothing may follow it"):
        manifest.append([Row("c", "done")])
    assert [row.key for row in Manifest(LocalStorage(tmp_path)).rows()] == ["a"]


def test_keys_with_one_first_half(monkeypatch):
    """Keys are found by the second half of their digests if several have the same first half."""
    high = digest("x")[:8]
    digests = b"".join(high + bytes([i]) * 8 for i in (1, 2, 3))
    known = Known(digests + digest("y"), bytes([DONE, LOST, DONE, DONE]), [4, 5, 6, 7])
    assert len(known) == 4
    monkeypatch.setattr("dajax.batch.manifest.digest", lambda key: high + bytes([int(key)]) * 8)
    found, stamps = known.look_up(["3", "1", "2", "4"])
    assert found.tolist() == [DONE, DONE, LOST, 0]
    assert stamps.tolist() == [6, 4, 5, 0]


@pytest.mark.slow
def test_ten_million_rows(tmp_path):
    """Less than a minute and 2 GB: pytest -m slow tests/batch/test_manifest.py."""
    folder = tmp_path / ".dajax" / "manifest"
    folder.mkdir(parents=True)
    count, parts = 10_000_000, 8
    about = {"quality": QUALITY, "stamp": STAMP, "time": "2026-01-01T00:00:00+00:00"}
    done = Row("KEY", "done", ["KEY_depth.npy"], ["0" * 64], [480, 640], **about)
    row = done.line().decode()
    for part in range(parts):
        with (folder / f"{part}.jsonl").open("w") as file:
            for start in range(part * count // parts, (part + 1) * count // parts, 10_000):
                file.write("".join(row.replace("KEY", f"{i // 1000}/{i}.jpg") for i in range(start, start + 10_000)))
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "import re, time\n"
        "from pathlib import Path\n"
        "from dajax.batch.manifest import Manifest\n"
        "from dajax.batch.local_storage import LocalStorage\n"
        "before = time.perf_counter()\n"
        f"known = Manifest(LocalStorage(Path({str(tmp_path)!r}))).known()\n"
        # Not the peak of getrusage, which begins with that of the process that started this one.
        "peak = re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]\n"
        "print(time.perf_counter() - before, peak, len(known))\n"
        "print(known.look_up(['0/0.jpg', '9999/9999999.jpg', '0/x.jpg'])[0].tolist())\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    figures, contained = said.splitlines()
    seconds, peak, found = figures.split()
    print(f"{float(seconds):.0f} s, {int(peak) / 1e6:.2f} GB")
    assert int(found) == count
    assert contained == f"[{DONE}, {DONE}, 0]"
    assert int(peak) < 2e6
    assert float(seconds) < 60


def test_nothing_is_known():
    for keys in (["a"], []):
        assert [found.tolist() for found in Known(b"", b"", []).look_up(keys)] == [[0] * len(keys)] * 2
    assert Known(digest("a"), b"d", [9]).look_up(["a"])[1].tolist() == [9]


@pytest.mark.parametrize("stamp", ["", "size=3 mtime_ns=17", 'size=3 etag="ab\\c", "output": "'])
def test_stamps_are_found(tmp_path, stamp):
    key = 'a", "stamp": "'
    manifest = written(tmp_path, [Row(key, "done", stamp=one) for one in ("size=0", stamp)])
    assert list(manifest.rows())[1].stamp == stamp
    assert manifest.known().look_up([key])[1].tolist() == [stamp_number(stamp)]
    assert (stamp_number(stamp) == 0) == (stamp == "")


def test_the_last_row_counts_whatever_the_clocks_say(tmp_path):
    first = written(tmp_path, [Row("a", "done")])
    (part,) = (tmp_path / ".dajax" / "manifest").iterdir()
    part.rename(part.with_name("29991231T235959.999999Z-another-1-aa.jsonl"))
    part.with_name("no-stamp.jsonl").write_bytes(Row("b", "done").line())
    second = written(tmp_path, [Row("a", "lost", reason="gone")])
    assert len(first.parts()) == 3
    assert first.latest()["a"].status == "lost"
    assert statuses(second, ["a"]) == [LOST]
