"""The manifest: every whole row counts, wherever the last one is cut off."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from dajax.batch.local_storage import LocalStorage
from dajax.batch.manifest import Finished, Manifest, Row
from dajax.depth_maps.naming import digest
from dajax.errors import JobError

STRANGE = ["a.jpg", 'quote" and \\', '", "status": "done', "new\nline", "caf\udce9", "\u00e9", "\U0001f600", "\0"]


def written(tmp_path, rows):
    manifest = Manifest(LocalStorage(tmp_path))
    manifest.append(rows)
    return manifest


def test_rows_come_back(tmp_path):
    rows = [
        Row(key, "done", [f"{i}.npy"], ["0" * 64], [3, 4], notes=["animated"], time="t")
        for i, key in enumerate(STRANGE)
    ]
    rows.append(Row("bad.jpg", "rejected", reason='damaged "badly"\n', time="t"))
    manifest = written(tmp_path, rows)
    assert list(manifest.rows()) == rows
    assert manifest.finished().contains([*STRANGE, "bad.jpg", "other"]).tolist() == [True] * 9 + [False]
    assert manifest.finished(rejected=False).contains(["bad.jpg", STRANGE[2]]).tolist() == [False, True]
    assert manifest.rejects() == rows[-1:]
    for line in (tmp_path / manifest.parts()[0]).read_bytes().splitlines():
        assert line.isascii()
        json.loads(line)


def test_the_last_row_of_a_key_counts(tmp_path):
    first = written(tmp_path, [Row("a", "rejected", reason="x"), Row("b", "done"), Row("c", "done")])
    second = written(tmp_path, [Row("a", "done"), Row("b", "lost", reason="gone")])
    assert len(first.parts()) == 2
    assert {key: row.status for key, row in second.latest().items()} == {"a": "done", "b": "lost", "c": "done"}
    assert second.finished().contains(["a", "b", "c"]).tolist() == [True, False, True]
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
        assert found.finished().contains(STRANGE).tolist() == [True] * complete + [False] * (len(STRANGE) - complete)


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
    assert Manifest(LocalStorage(tmp_path)).finished().contains(["a", "b"]).tolist() == [True, False]


def test_damage_in_the_middle_is_named(tmp_path):
    manifest = written(tmp_path, [Row("a", "done"), Row("b", "done"), Row("c", "done")])
    part = tmp_path / manifest.parts()[0]
    lines = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(lines[0] + lines[1][:30] + b"\n" + lines[2])
    with pytest.raises(JobError, match=rf"jsonl: the row at byte {len(lines[0])} is damaged"):
        Manifest(LocalStorage(tmp_path)).finished()


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
    finished = Finished(digests + digest("y"), bytearray([1, 0, 1, 1]))
    assert len(finished) == 3
    monkeypatch.setattr("dajax.batch.manifest.digest", lambda key: high + bytes([int(key)]) * 8)
    assert finished.contains(["3", "1", "2", "4"]).tolist() == [True, True, False, False]


@pytest.mark.slow
def test_ten_million_rows(tmp_path):
    """Less than a minute and 2 GB: pytest -m slow tests/batch/test_manifest.py."""
    folder = tmp_path / ".dajax" / "manifest"
    folder.mkdir(parents=True)
    count, parts = 10_000_000, 8
    row = (
        Row("KEY", "done", ["KEY_depth.npy"], ["0" * 64], [480, 640], time="2026-01-01T00:00:00+00:00").line().decode()
    )
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
        f"finished = Manifest(LocalStorage(Path({str(tmp_path)!r}))).finished()\n"
        # Not the peak of getrusage, which begins with that of the process that started this one.
        "peak = re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]\n"
        "print(time.perf_counter() - before, peak, len(finished))\n"
        "print(finished.contains(['0/0.jpg', '9999/9999999.jpg', '0/x.jpg']).tolist())\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    figures, contained = said.splitlines()
    seconds, peak, found = figures.split()
    print(f"{float(seconds):.0f} s, {int(peak) / 1e6:.2f} GB")
    assert int(found) == count
    assert contained == "[True, True, False]"
    assert int(peak) < 2e6
    assert float(seconds) < 60


def test_finished_of_nothing():
    assert Finished(b"", b"").contains(["a"]).tolist() == [False]
    assert Finished(b"", b"").contains([]).tolist() == []
    assert np.array_equal(Finished(digest("a"), b"\1").contains(["a"]), [True])


def test_the_last_row_counts_whatever_the_clocks_say(tmp_path):
    first = written(tmp_path, [Row("a", "done")])
    (part,) = (tmp_path / ".dajax" / "manifest").iterdir()
    part.rename(part.with_name("29991231T235959.999999Z-another-1-aa.jsonl"))
    part.with_name("no-stamp.jsonl").write_bytes(Row("b", "done").line())
    second = written(tmp_path, [Row("a", "lost", reason="gone")])
    assert len(first.parts()) == 3
    assert first.latest()["a"].status == "lost"
    assert not second.finished().contains(["a"])[0]
