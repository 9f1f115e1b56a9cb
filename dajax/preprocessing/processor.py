"""Images to the network's pixels, and its depth maps back to the images' sizes.

Two recipes exist and differ: "huggingface" gives the numbers of Transformers' `DPTImageProcessorPil`, "official" those
of the authors' `image2tensor` and `infer_image`. Nothing in between is offered.
"""

import json
import os
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Unpack, get_args

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from dajax.checkpoints import ALIASES, ORIGINALS
from dajax.config import DepthAnythingConfig, Style
from dajax.errors import ConfigError, ImageError, WeightsError, shown
from dajax.files import write_atomically
from dajax.hub import PROCESSOR_FILE, HubOptions, is_hub_id, processor_file
from dajax.images.read import read_image
from dajax.json_fields import read_json
from dajax.limits import MAX_IMAGE_SIZE, MAX_PIXELS, MAX_TOKENS
from dajax.preprocessing.processor_file import FILE_DEFAULTS, check_numbers, parse_fields
from dajax.preprocessing.recipes import lookup_tables, official_pixels, size_rule
from dajax.resample import resize_cubic, resize_linear

# DINOv2's patches; both sides of the network's input are counted in them.
PATCH = 14
# The statistics that DINOv2 was trained with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class DepthImageProcessor:
    """Turns images into `pixel_values` and depth maps back into the images' sizes.

    The defaults are those of every released Depth Anything checkpoint. Field names are those of Transformers'
    `preprocessor_config.json`, so files can be exchanged.

    Attributes:
        style: "huggingface" or "official"; picks the size rule, the filter and the resize back.
        size: {"height": int, "width": int}, what the size rule aims at, in pixels.
        ensure_multiple_of, keep_aspect_ratio: the size rule's other inputs, see `target_size`.
        resample: PIL's number of the filter (3 is bicubic); "official" always uses OpenCV's bicubic.
        do_resize, do_rescale, rescale_factor, do_normalize, image_mean, image_std: as in Transformers.

    Raises:
        ConfigError: a field is out of bounds, or the style is unknown.
    """

    def __init__(
        self,
        style: str = "huggingface",
        input_size: int | tuple[int, int] = 518,
        *,
        ensure_multiple_of: int = PATCH,
        keep_aspect_ratio: bool = True,
        resample: int = 3,
        do_resize: bool = True,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        if style not in get_args(Style):
            raise ConfigError(f"style must be one of {', '.join(get_args(Style))}, got {style!r}")
        height, width = (input_size, input_size) if isinstance(input_size, int) else input_size
        for field, value, low, high in (
            ("input_size (height)", height, PATCH, MAX_IMAGE_SIZE),
            ("input_size (width)", width, PATCH, MAX_IMAGE_SIZE),
            ("ensure_multiple_of", ensure_multiple_of, 1, MAX_IMAGE_SIZE),
            ("resample", resample, 0, 5),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ConfigError(f"{field} must be a whole number from {low} to {high}, got {shown(value)}")
        check_numbers("rescale_factor", [rescale_factor], 1, 1e-9, 1e6)
        check_numbers("image_mean", image_mean, 3)
        check_numbers("image_std", image_std, 3, 1e-6, 1e6)
        self.style = style
        self.size = {"height": height, "width": width}
        self.ensure_multiple_of = ensure_multiple_of
        self.keep_aspect_ratio = bool(keep_aspect_ratio)
        self.resample = resample
        self.do_resize = bool(do_resize)
        self.do_rescale = bool(do_rescale)
        self.rescale_factor = float(rescale_factor)
        self.do_normalize = bool(do_normalize)
        self.image_mean = tuple(float(mean) for mean in image_mean)
        self.image_std = tuple(float(deviation) for deviation in image_std)
        # What each step works with: None where it is switched off.
        factor = self.rescale_factor if self.do_rescale else None
        statistics = (self.image_mean, self.image_std) if self.do_normalize else None
        self._tables = lookup_tables(factor, statistics)
        self._official = partial(official_pixels, factor=factor, statistics=statistics)

    def __repr__(self) -> str:
        return f"DepthImageProcessor(style={self.style!r}, size={self.size}, resample={self.resample})"

    # --- configuration ---------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        style: str | None = None,
        input_size: int | tuple[int, int] | None = None,
        **hub_options: Unpack[HubOptions],
    ) -> "DepthImageProcessor":
        """Processor of a checkpoint.

        Args:
            name: as for `dajax.load`: an alias (all released checkpoints share the defaults, so nothing is downloaded),
                a Hub id, or a directory or file with a `preprocessor_config.json` beside it. A directory without one
                gets the defaults, with a warning.
            style: see the class; None: what `save_pretrained` wrote, else "huggingface".
            input_size: replaces the file's `size`.
            hub_options: see `dajax.hub.HubOptions`.

        Raises:
            ConfigError: the file is malformed or describes another processor.
            HubError: the Hub does not give the file.
        """
        path = processor_file(name, hub_options)
        if path is None:
            if os.path.isdir(name) or (is_hub_id(name) and name not in ALIASES and name not in ORIGINALS):
                warnings.warn(
                    f"{name} has no {PROCESSOR_FILE}: the released checkpoints' is used", UserWarning, stacklevel=2
                )
            return cls(_default(style, "huggingface"), _default(input_size, 518))
        return cls.from_dict(read_json(path), style=style, input_size=input_size, source=str(path))

    @classmethod
    def from_dict(
        cls,
        fields: dict[str, Any],
        *,
        style: str | None = None,
        input_size: int | tuple[int, int] | None = None,
        source: str = "preprocessor config",
    ) -> "DepthImageProcessor":
        """Processor from the fields of a `preprocessor_config.json`; absent fields are Transformers' DPT defaults.

        Args:
            fields: the parsed file. Fields that do not concern the pixels are ignored.
            style: see the class; None: the field `style`, else "huggingface".
            input_size: replaces the `size` field.
            source: what error messages call the fields.

        Raises:
            ConfigError: a field is malformed, or the fields are those of another processor.
        """
        known = parse_fields(fields, source)
        size, own_style = known.pop("size"), known.pop("style")
        try:
            return cls(_default(style, own_style), _default(input_size, size), **known)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Fields as Transformers' `DPTImageProcessor` writes them, and `style` where it is not Transformers'."""
        return {
            **({} if self.style == "huggingface" else {"style": self.style}),
            "image_processor_type": "DPTImageProcessor",
            **{key: getattr(self, key) for key in FILE_DEFAULTS},
            "size": dict(self.size),
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
        }

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write `preprocessor_config.json`, which Transformers' `AutoImageProcessor` opens, into a directory.

        Raises:
            WeightsError: the file cannot be written.
        """
        try:
            Path(directory).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WeightsError(f"{directory} cannot be made: {error.strerror or error}") from error
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"
        write_atomically(Path(directory) / PROCESSOR_FILE, text.encode(), error=WeightsError)

    # --- images to pixels ----------------------------------------------------------------------------------------

    def target_size(self, height: int, width: int) -> tuple[int, int]:
        """Size that an image of this size gets before it enters the network, in pixels.

        The rule is `dajax.preprocessing.recipes.size_rule`.

        Raises:
            ImageError: a side is less than 1, or the result has more patches than the limit.
        """
        if height < 1 or width < 1:
            raise ImageError(f"the image is empty ({height}x{width})")
        sides = (height, width)
        if self.do_resize:
            goals = (self.size["height"], self.size["width"])
            sides = size_rule(sides, goals, self.ensure_multiple_of, self.keep_aspect_ratio, self.style)
        if (tokens := (sides[0] // PATCH) * (sides[1] // PATCH)) > MAX_TOKENS:
            raise ImageError(
                f"an image of {height}x{width} (height x width) would be processed at {sides[0]}x{sides[1]}, which is "
                f"{tokens:,} patches; the limit is {MAX_TOKENS:,}. Crop it, or use a smaller input_size."
            )
        return sides

    def __call__(self, images: Any) -> dict[str, Float32[np.ndarray, "batch height width 3"]]:
        """Process one image or a list of images to a batch.

        Args:
            images: Anything that `dajax.images.read.read_image` takes, a list of those, or an array [batch, height,
                width, channels].

        Returns:
            {"pixel_values": float32 [batch, height, width, 3]}, RGB, normalised.

        Raises:
            ImageError: an image cannot be read, there is none, or they do not become the same size.
        """
        is_batch = isinstance(images, list | tuple) or getattr(images, "ndim", None) == 4
        pixels = [self.preprocess_one(read_image(image))[0] for image in (images if is_batch else [images])]
        if not pixels:
            raise ImageError("expected at least one image, got an empty list")
        shapes = sorted({pixel.shape[:2] for pixel in pixels})
        if len(shapes) > 1:
            raise ImageError(
                f"the images become {len(shapes)} different sizes (height, width): {shapes[:5]}, and one array "
                f"cannot hold them. Process them one at a time, or use dajax.DepthEstimator or dajax.pipeline, which "
                f"take images of mixed sizes."
            )
        return {"pixel_values": np.stack(pixels)}

    def preprocess_one(
        self, image: UInt8[np.ndarray, "source_height source_width 3"], *, size: tuple[int, int] | None = None
    ) -> tuple[Float32[np.ndarray, "height width 3"], tuple[int, int]]:
        """Process one RGB image.

        Args:
            image: uint8 [source_height, source_width, 3], such as from `read_image`.
            size: (height, width) to resize to, instead of `target_size`.

        Returns:
            float32 [height, width, 3], normalised; and (source_height, source_width).

        Raises:
            ImageError: the processed image would be beyond the limit on patches.
        """
        source_size = (image.shape[0], image.shape[1])
        if self.style == "official":
            return self._official(image, size or self.target_size(*source_size)), source_size
        resized = self.resize_uint8(image, size=size)
        pixels = np.empty(resized.shape, np.float32)
        for channel, table in enumerate(self._tables):
            pixels[:, :, channel] = table[resized[:, :, channel]]
        return pixels, source_size

    def resize_uint8(
        self, image: UInt8[np.ndarray, "source_height source_width 3"], *, size: tuple[int, int] | None = None
    ) -> UInt8[np.ndarray, "height width 3"]:
        """First step of the "huggingface" recipe: Pillow's filter, which is antialiased and rounds to 8 bits."""
        height, width = size or self.target_size(image.shape[0], image.shape[1])
        if size is None and not self.do_resize:
            return image
        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling(self.resample)))

    # --- depth back to the images' sizes -------------------------------------------------------------------------

    def post_process_depth_estimation(
        self, outputs: Any, target_sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[dict[str, Float32[np.ndarray, "height width"]]]:
        """Resize a batch of depth maps to the sizes of their images.

        "huggingface": bicubic, a = -0.75, corners not aligned; it overshoots, so values may leave its range.
        "official": bilinear, corners aligned. The unit stays: relative (affine-invariant inverse depth, bigger is
        nearer) or metres, as the model gives it.

        Args:
            outputs: the model's output (anything with `predicted_depth`) or the depth maps, [batch, height, width].
            target_sizes: (height, width) for each depth map; None leaves the sizes as they are.

        Returns:
            One {"predicted_depth": float32 [height, width]} per map.

        Raises:
            ImageError: the depth maps are not [batch, height, width], or the sizes are not one per depth map or not
                positive.
        """
        found = (
            outputs["predicted_depth"] if isinstance(outputs, dict) else getattr(outputs, "predicted_depth", outputs)
        )
        depths = np.asarray(found, np.float32)
        if depths.ndim != 3 or depths.size == 0:
            raise ImageError(f"predicted_depth must be [batch, height, width], got shape {list(depths.shape)}")
        if target_sizes is None:
            return [{"predicted_depth": depth} for depth in depths]
        if len(target_sizes) != len(depths):
            raise ImageError(
                f"expected one target size per depth map: {len(depths)} depth maps, {len(target_sizes)} sizes"
            )
        resize = resize_linear if self.style == "official" else resize_cubic
        results = []
        for depth, target in zip(depths, target_sizes, strict=True):
            height, width = (int(side) for side in target)
            if height < 1 or width < 1 or height * width > MAX_PIXELS:
                raise ImageError(f"a target size must be (height, width) with 1 to {MAX_PIXELS:,} pixels, got {target}")
            results.append({"predicted_depth": resize(depth, (height, width))})
        return results


def _default(value: Any, default: Any) -> Any:
    return default if value is None else value


def own_processor(config: DepthAnythingConfig, input_size: int | tuple[int, int] | None = None) -> DepthImageProcessor:
    """Return the processor that came with the weights of a model, else that of the released checkpoints.

    Args:
        config: the model's. Its style is the processor's.
        input_size: replaces the size.

    Raises:
        ConfigError: the fields that came with the weights are malformed.
    """
    if config.preprocessing is None:
        return DepthImageProcessor(config.style, _default(input_size, 518))
    fields = dict(config.preprocessing)
    return DepthImageProcessor.from_dict(
        fields, style=config.style, input_size=input_size, source=f"the model's {PROCESSOR_FILE}"
    )
