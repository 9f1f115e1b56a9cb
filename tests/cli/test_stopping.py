"""What Ctrl-C does to the commands that finish what they have begun."""

import io
import signal
import sys

import pytest

from dajax.cli import batch, video


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
