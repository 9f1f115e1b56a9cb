"""What Ctrl-C does to the commands that finish what they have begun."""

import io
import os
import signal
import sys
import time

import pytest

from dajax.cli import batch, video
from dajax.cli.stopping import stopping


class Interrupted(io.RawIOBase):
    """A terminal at which Ctrl-C is pressed while something is printed."""

    def __init__(self):
        self.printed = b""

    def writable(self):
        return True

    def write(self, data):
        if not self.printed:
            signal.raise_signal(signal.SIGINT)
        self.printed += data
        return len(data)


@pytest.mark.parametrize("command", [batch, video])
def test_in_the_middle_of_a_print(command, monkeypatch, capfd):
    """Python's own files refuse to be written to while they are written to."""
    terminal = Interrupted()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BufferedWriter(terminal), write_through=True))
    with command._stopping() as stop:
        print("3 frames", file=sys.stderr, flush=True)
    assert stop.is_set()
    assert terminal.printed == b"3 frames\n"
    assert "once more to stop at once" in capfd.readouterr().err


def test_nobody_reads_what_is_said():
    """As in `dajax video webcam:0 out.mp4 2>&1 | tee log`, where Ctrl-C ends `tee` first."""
    theirs, ours = os.pipe()
    os.close(theirs)
    kept = os.dup(2)
    try:
        os.dup2(ours, 2)
        with stopping("stopping", on_second=pytest.fail) as stop:
            signal.raise_signal(signal.SIGINT)
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(ours)
    assert stop.is_set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_request_may_come_twice_but_a_second_one_counts(number):
    """GNU timeout signals a process, and then its group."""
    before, firsts, seconds = signal.getsignal(number), [], []
    with stopping("stopping", on_first=lambda: firsts.append(1), on_second=seconds.append) as stop:
        assert not stop.is_set()
        signal.raise_signal(number)
        signal.raise_signal(number)
        assert (stop.is_set(), len(firsts), seconds) == (True, 1, [])
        time.sleep(0.15)
        signal.raise_signal(number)
        assert (len(firsts), seconds) == (1, [number])
    assert signal.getsignal(number) == before
