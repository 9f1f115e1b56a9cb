"""Progress in a terminal, in a pipe, and where nobody looks."""

import io
import sys

import pytest

from dajax import progress
from dajax.progress import ProgressBar


class Clock:
    now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_pipe_gets_a_line_now_and_then(clock, capsys):
    with ProgressBar("dajax batch", 1000, initial=100) as bar:
        bar.advance(10)
        clock.now += 9
        bar.advance(40)
        assert capsys.readouterr().err == ""
        clock.now += 1
        bar.advance(50)
        bar.advance(50)
        assert capsys.readouterr().err == "dajax batch: 200 of 1000 images, 10 a second, about 80 s left\n"
        clock.now += 10
        bar.note(rejected=3)
        bar.advance()
    said = capsys.readouterr().err
    assert said.startswith("dajax batch: 251 of 1000 images, ")
    assert said.endswith(" left, rejected 3\n")


def test_a_total_that_is_not_known(clock, capsys):
    with ProgressBar("dajax video", 5, unit="frame") as bar:
        bar.begin(None)
        clock.now += 20
        bar.advance(40)
    assert capsys.readouterr().err == "dajax video: 40 frames, 2 a second\n"


def test_a_terminal_gets_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with ProgressBar("dajax train", 4, unit="step") as bar:
        bar.note(loss="0.5")
        bar.say("compiling")
        for _ in range(4):
            bar.advance()
    assert "4/4" in terminal.getvalue()
    assert "dajax train: compiling\n" in terminal.getvalue()


def test_not_shown_it_counts_silently_but_speaks(clock, capsys, monkeypatch):
    with ProgressBar("dajax predict", 1, show=False) as bar:
        clock.now += 100
        bar.advance()
        assert capsys.readouterr().err == ""
        bar.say("compiling")
        assert capsys.readouterr().err == "dajax predict: compiling\n"
    monkeypatch.setattr(sys, "stderr", None)  # as below pythonw
    with ProgressBar("dajax predict", 3) as bar:
        bar.advance()
        bar.say("nothing")


@pytest.mark.parametrize(("seconds", "said"), [(-1, "0 s"), (89, "89 s"), (600, "10 min"), (9000, "2.5 h")])
def test_durations(seconds, said):
    assert progress._duration(seconds) == said
