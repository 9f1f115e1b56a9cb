"""The times of a video's frames and audio, counted from where the video begins."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

# A clock that begins later than this, in seconds, does not count from the beginning of the video. Edit lists and frames
# that are stored in another order make a video begin a little late.
_LATE = 1
# A clock that goes back by more than this, in seconds, was set back. Frames that come a little early are an error.
_BACK = 1


class Clock:
    """Counts the times of frames so that they begin near 0 and grow.

    Args:
        time_base: the unit of the frames' times, in seconds.
        rate: the mean number of frames per second, for frames without a time.
        audio: the audio stream whose packets belong to the frames, or None.
        notes: gets what was changed, a sentence each.
    """

    def __init__(self, time_base: Fraction, rate: Fraction, audio: Any, notes: set[str]) -> None:
        self._time_base, self._audio, self._notes = time_base, audio, notes
        self._ticks = max(round(1 / (rate * time_base)), 1)
        self._last: int | None = None
        # What is taken from the times of the file, in units of `time_base`.
        self.shift = 0
        # The same of the audio, and its last time, in seconds.
        self._audio_shift = Fraction(0)
        self._heard: Fraction | None = None
        # What was taken from the times of the frames after each time that the clock was set back, in seconds; and how
        # often the audio followed.
        self._backs: list[Fraction] = []
        self._audio_backs = 0

    def of_frame(self, pts: int | None) -> int:
        """Return the time of the next frame, in units of `time_base`, from that in the file."""
        if self._last is None:
            self._set(pts or 0)
            self._last = (pts or 0) - self.shift
            return self._last
        time = self._last + self._ticks if pts is None else pts - self.shift
        if (self._last - time) * self._time_base > _BACK:
            self._notes.add("its clock was set back, and the times go on from there")
            self.shift += time - self._last - self._ticks
            self._backs.append(self.shift * self._time_base)
            time = self._last + self._ticks
        self._last = max(time, self._last + 1)  # of two frames at one time the second comes one tick later
        return self._last

    def set_packet(self, packet: Any, *, wait: bool) -> bool:
        """Change the times of an audio packet to those of the frames, and say whether this was done.

        Args:
            packet: the next packet. The first frame has to come before.
            wait: Do nothing if the clock was set back for the audio and not yet for the frames.
        """
        time = packet.dts * packet.time_base - self._audio_shift
        if self._heard is not None and self._heard - time > _BACK:
            if wait and self._audio_backs == len(self._backs):
                return False
            shift = packet.dts * packet.time_base - self._heard - (packet.duration or 1) * packet.time_base
            if self._audio_backs < len(self._backs):
                shift = min(shift, self._backs[self._audio_backs])
                self._audio_backs += 1
            self._audio_shift = shift
        ticks = round(self._audio_shift / packet.time_base)
        packet.dts -= ticks
        if packet.pts is not None:
            packet.pts -= ticks
        self._heard = packet.dts * packet.time_base
        return True

    @property
    def runs(self) -> bool:
        """Whether the first frame has come."""
        return self._last is not None

    def _set(self, pts: int) -> None:
        first = pts * self._time_base
        if self._audio is not None and self._audio.start_time is not None:
            # Before 0 there is padding of the codec, which is not heard.
            first = min(first, max(self._audio.start_time * self._audio.time_base, Fraction(0)))
        if not 0 <= first <= _LATE:
            self._notes.add(f"its clock begins at {float(first):.3f} s, and times are counted from there")
            self._audio_shift = first
            self.shift = round(first / self._time_base)
