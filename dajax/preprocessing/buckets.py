"""A few sizes for images of any size, so that few programs are compiled."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from dajax.errors import ConfigError
from dajax.preprocessing.processor import DepthImageProcessor

Policy = Literal["resize", "pad"]
# Aspect ratios (width / height) that the buckets are spread over; 9:16 to 16:9 are inside.
_WIDEST = 2.0


@dataclass(frozen=True)
class ProcessedImage:
    """An image as the network takes it.

    Attributes:
        pixels: float32 [height, width, 3], normalised.
        source_size: (height, width) that its depth map is to have.
        content: (height, width) of the part of `pixels`, at the upper left, that is the image.
    """

    pixels: np.ndarray
    source_size: tuple[int, int]
    content: tuple[int, int]

    def mirrored(self) -> ProcessedImage:
        """Return the mirror image, left for right, at the same place of `pixels`."""
        height, width = self.content
        pixels = self.pixels.copy()
        pixels[:height, :width] = self.pixels[:height, :width][:, ::-1]
        return ProcessedImage(pixels, self.source_size, self.content)


class Buckets:
    """Processes images to one of few sizes.

    The sizes are those of the processor for `count` aspect ratios between 1:2 and 2:1, evenly spread on a logarithmic
    scale; they depend on nothing else, so that an image gets the same size in every run. An image goes to the
    nearest.

    Args:
        processor: whose recipe it is.
        count: of sizes. None: each image gets its own, as `processor` has it.
        policy: "resize" stretches an image to the whole size: as fast as it can be. "pad" keeps its aspect ratio,
            within the size, and fills up with the mean colour: less of the size is used.

    Attributes:
        sizes: (height, width) of the buckets; empty without `count`.

    Raises:
        ConfigError: `count` is less than 1, `policy` is not known, or the processor does not resize.
    """

    def __init__(self, processor: DepthImageProcessor, count: int | None, policy: str = "resize") -> None:
        if policy not in get_args(Policy):
            raise ConfigError(f"policy must be one of {', '.join(get_args(Policy))}, got {policy!r}")
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise ConfigError(f"buckets must be a whole number of at least 1, got {count!r}")
        if count is not None and not processor.do_resize:
            raise ConfigError("buckets are sizes to resize to, and this processor does not resize")
        self._processor, self._policy = processor, policy
        self._ratios = [_WIDEST ** ((2 * i + 1) / (count or 1) - 1) for i in range(count or 0)]
        self.sizes = [processor.target_size(1000, round(1000 * ratio)) for ratio in self._ratios]

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) that an image of this size is processed at.

        Raises:
            ImageError: it has more patches than the limit.
        """
        if not self.sizes:
            return self._processor.target_size(height, width)
        wanted = math.log(width / height)
        apart = [abs(math.log(size[1] / size[0]) - wanted) for size in self.sizes]
        return self.sizes[apart.index(min(apart))]

    def process(self, image: np.ndarray) -> ProcessedImage:
        """Process uint8 [height, width, 3].

        Raises:
            ImageError: it would have more patches than the limit.
        """
        source = (image.shape[0], image.shape[1])
        if not self.sizes:
            pixels, _ = self._processor.preprocess_one(image)
            return ProcessedImage(pixels, source, (pixels.shape[0], pixels.shape[1]))
        size = self.size_of(*source)
        if self._policy == "resize":
            return ProcessedImage(self._processor.preprocess_one(image, size=size)[0], source, size)
        scale = min(size[0] / source[0], size[1] / source[1])
        content = (
            min(max(round(source[0] * scale), 1), size[0]),
            min(max(round(source[1] * scale), 1), size[1]),
        )
        inside, _ = self._processor.preprocess_one(image, size=content)
        # Zero is the mean colour once it is normalised.
        pixels = np.zeros((*size, 3), np.float32)
        pixels[: content[0], : content[1]] = inside
        return ProcessedImage(pixels, source, content)

    def options(self) -> dict[str, Any]:
        """Return what `from_options` makes the same buckets of, as JSON's types."""
        return {
            "processor": self._processor.to_dict(),
            "count": len(self.sizes) or None,
            "policy": self._policy,
        }

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> Buckets:
        """Return the buckets that had these options."""
        processor = DepthImageProcessor.from_dict(options["processor"])
        return cls(processor, options["count"], options["policy"])
