"""Steadies the depth of a network that sees one frame at a time.

Such depth flickers for two reasons. Each frame has its own scale and shift: these are fitted to those of its
neighbours, over windows that overlap. And each pixel has its own error: the pixel is averaged along the motion of the
image, forward and backward in time, as long as the image shows the same thing there. Nothing is summed up over the
whole video, so nothing drifts: if the camera approaches a wall, the wall still comes nearer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from dajax.errors import ConfigError, missing_extra
from dajax.geometry.scale import robust_line, thinned

# The number of frames that leave together, and the number of following frames that they are compared with.
_BLOCK = 16
_AHEAD = 24
# The standard deviation of the weights of a frame's neighbours in the fit, in frames.
_SIGMA = 8.0
_ROUNDS = 3
# The fraction of its weight that the history of a pixel keeps with every frame.
_KEPT = 0.85
# The difference of colours, of 255, at which the weight of a pixel's history falls to 1/e: it shows another thing.
_COLOUR = 25.0
# A frame begins a new shot if the mean weight of its pixels' history is below this.
_SAME_SHOT = 0.2
# The longer side of the images on which motion is estimated, in pixels.
_MOTION_SIDE = 224


class _Step(NamedTuple):
    """Where the pixels of a frame are in a neighbouring frame, and how sure that is."""

    motion: np.ndarray  # float32 [height, width, 2]: right, down, in pixels
    weight: np.ndarray  # float32 [height, width], 0 to 1


class _Held(NamedTuple):
    """A frame that has not left yet."""

    depth: np.ndarray
    guide: np.ndarray  # uint8, the image on which motion is estimated
    before: _Step | None  # None: the first frame of a shot
    shot: int


class Smoother:
    """Takes the depth of frames in order and returns it, steadied, up to 40 frames later.

    Args:
        kind: "relative": scale and shift are fitted. "metric": only a scale is fitted, and the mean depth is kept.

    Raises:
        ConfigError: OpenCV is not installed.
    """

    def __init__(self, kind: str = "relative") -> None:
        self._cv = _opencv()
        self._flow = self._cv.DISOpticalFlow_create(self._cv.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._with_shift = kind == "relative"
        self._past: list[tuple[np.ndarray, int]] = []  # thinned aligned depth of frames that have left, and their shots
        self._held: list[_Held] = []
        self._forward: tuple[np.ndarray, np.ndarray] | None = None  # mean and weight of the last frame that left
        self._last: _Held | None = None

    def push(self, depth: np.ndarray, image: np.ndarray) -> list[np.ndarray]:
        """Take the next frame; return the steadied depth of the frames that are finished, float32 [height, width].

        Args:
            depth: the depth of the frame, float32 [height, width]: metres, or inverse depth of a relative model.
            image: the frame, uint8 [image_height, image_width, 3], of any size.
        """
        guide = self._guide(image)
        before, shot = None, 0
        if self._last is not None:
            step = self._step(guide, self._last.guide, depth.shape)
            shot = self._last.shot
            if depth.shape == self._last.depth.shape and step.weight.mean() >= _SAME_SHOT:
                before = step
            else:
                shot += 1
        self._last = _Held(np.asarray(depth, np.float32), guide, before, shot)
        self._held.append(self._last)
        return self._leave(_BLOCK) if len(self._held) == _BLOCK + _AHEAD else []

    def flush(self) -> list[np.ndarray]:
        """Return the depth of the frames that are left. Frames that are pushed afterwards belong to another video."""
        rest = self._leave(len(self._held)) if self._held else []
        self._past, self._forward, self._last = [], None, None
        return rest

    def _leave(self, count: int) -> list[np.ndarray]:
        aligned = self._aligned()
        found = self._averaged(aligned, count)
        shots = [held.shot for held in self._held]
        self._past = [*self._past, *zip(map(thinned, aligned[:count]), shots[:count], strict=True)][-_BLOCK:]
        del self._held[:count]
        return found

    def _aligned(self) -> list[np.ndarray]:
        """Fit the depth of every held frame to the mean of its neighbours before and after it, and return it."""
        held = np.stack([thinned(h.depth) for h in self._held])
        fixed = [depth for depth, _ in self._past]
        shots = np.array([shot for _, shot in self._past] + [h.shot for h in self._held])
        weights = _weights(shots)[len(fixed) :]
        aligned, fits = held, [(1.0, 0.0)] * len(held)
        for _ in range(_ROUNDS):
            means = weights @ np.concatenate([*([np.stack(fixed)] if fixed else []), aligned])
            fits = [
                robust_line(depth, mean, with_shift=self._with_shift) for depth, mean in zip(held, means, strict=True)
            ]
            aligned = np.stack([scale * depth + shift for depth, (scale, shift) in zip(held, fits, strict=True)])
        return [
            (scale * h.depth + shift).astype(np.float32) for h, (scale, shift) in zip(self._held, fits, strict=True)
        ]

    def _averaged(self, aligned: list[np.ndarray], count: int) -> list[np.ndarray]:
        ahead: list[tuple[np.ndarray, np.ndarray]] = []
        state = self._forward
        for depth, held in zip(aligned[:count], self._held[:count], strict=True):
            state = self._joined(depth, state, held.before)
            ahead.append(state)
        self._forward = state
        # The same from the end. The motion to the next frame is not the reverse of that frame's motion.
        behind: list[tuple[np.ndarray, np.ndarray]] = []
        state = None
        for i in range(len(aligned) - 1, -1, -1):
            step = None
            if i + 1 < len(aligned) and self._held[i + 1].before is not None:
                step = self._step(self._held[i].guide, self._held[i + 1].guide, aligned[i].shape)
            state = self._joined(aligned[i], state, step)
            if i < count:
                behind.append(state)
        found = []
        for depth, (before, n), (after, m) in zip(aligned, ahead, reversed(behind), strict=False):
            found.append(((before * n + after * m - depth) / (n + m - 1)).astype(np.float32))
        return found

    def _joined(
        self, depth: np.ndarray, state: tuple[np.ndarray, np.ndarray] | None, step: _Step | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and weight of the history of each pixel, this frame included."""
        if state is None or step is None:
            return depth, np.ones_like(depth)
        mean, weight = (self._moved(array, step.motion) for array in state)
        weight = _KEPT * step.weight * weight
        return (depth + weight * mean) / (1 + weight), 1 + weight

    def _step(self, guide: np.ndarray, other: np.ndarray, size: tuple[int, ...]) -> _Step:
        """Return where the pixels of a frame are in another frame."""
        cv = self._cv
        if guide.shape != other.shape:
            return _Step(np.zeros((*size, 2), np.float32), np.zeros(size, np.float32))
        motion = self._flow.calc(cv.cvtColor(guide, cv.COLOR_RGB2GRAY), cv.cvtColor(other, cv.COLOR_RGB2GRAY), None)
        height, width = guide.shape[:2]
        difference = np.abs(self._moved(other.astype(np.float32), motion) - guide).mean(-1)
        weight = np.exp(-((difference / _COLOUR) ** 2))
        x, y = motion[..., 0] + np.arange(width), motion[..., 1] + np.arange(height)[:, None]
        weight *= (x >= 0) & (y >= 0) & (x <= width - 1) & (y <= height - 1)
        across, down = size[1] / width, size[0] / height
        to = (size[1], size[0])
        scaled = cv.resize(motion, to, interpolation=cv.INTER_LINEAR) * np.array([across, down], np.float32)
        return _Step(scaled, cv.resize(weight.astype(np.float32), to, interpolation=cv.INTER_LINEAR))

    def _moved(self, array: np.ndarray, motion: np.ndarray) -> np.ndarray:
        height, width = motion.shape[:2]
        x = motion[..., 0] + np.arange(width, dtype=np.float32)
        y = motion[..., 1] + np.arange(height, dtype=np.float32)[:, None]
        return self._cv.remap(array, x, y, self._cv.INTER_LINEAR, borderMode=self._cv.BORDER_REPLICATE)

    def _guide(self, image: np.ndarray) -> np.ndarray:
        scale = _MOTION_SIDE / max(image.shape[:2])
        size = tuple(max(round(side * scale), 16) for side in (image.shape[1], image.shape[0]))
        method = self._cv.INTER_AREA if scale < 1 else self._cv.INTER_CUBIC
        return self._cv.resize(image, size, interpolation=method)


def smooth_depth(frames: Any, kind: str = "relative") -> Iterator[np.ndarray]:
    """Yield the steadied depth of each frame, in order.

    Args:
        frames: an iterable of pairs (depth, image), as `Smoother.push` takes them.
        kind: "relative" or "metric", see `Smoother`.

    Raises:
        ConfigError: OpenCV is not installed.
    """
    smoother = Smoother(kind)
    for depth, image in frames:
        yield from smoother.push(depth, image)
    yield from smoother.flush()


def _weights(shots: np.ndarray) -> np.ndarray:
    """Return the weight of each frame [column] in the mean around each frame [row] of the same shot.

    The weights are Gaussian, with the correction of local linear regression: a linear trend is then its own mean at the
    first and last frames too, whose neighbours are all on one side.
    """
    place = np.arange(len(shots), dtype=np.float64)
    away = place - place[:, None]
    weights = np.exp(-0.5 * (away / _SIGMA) ** 2) * (shots[:, None] == shots)
    first, second = ((weights * away**power).sum(1, keepdims=True) for power in (1, 2))
    # A single frame has no trend.
    weights = np.where(second > 0, weights * (second - away * first), weights)
    return np.asarray(weights / weights.sum(1, keepdims=True))


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise ConfigError(
            missing_extra("video", "steady video depth, which --no-smooth switches off, needs OpenCV")
        ) from error
    return cv2
