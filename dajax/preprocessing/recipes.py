"""The arithmetic of the two preprocessing recipes, as pure functions."""

import math

import numpy as np
from jaxtyping import Float32, UInt8

from dajax.resample import apply_rows, cubic_matrix

# Per channel: mean and standard deviation.
Statistics = tuple[tuple[float, ...], tuple[float, ...]]


def size_rule(
    source: tuple[int, int], goals: tuple[int, int], multiple: int, keep_aspect_ratio: bool, style: str
) -> tuple[int, int]:
    """Size that an image is resized to. All sizes are (height, width) in pixels.

    "huggingface": of the two scales that bring one side to its goal, the one nearer to 1 is used for both sides
    (Transformers, `get_resize_output_image_size`). "official": the larger one, so that neither side is below its goal
    (Depth-Anything-V2, `Resize` with `lower_bound`). Both then round half to even to a multiple; a side that would
    become 0 becomes one multiple.
    """
    official = style == "official"
    scales = [goal / side for goal, side in zip(goals, source, strict=True)]
    if keep_aspect_ratio:
        width_wins = scales[1] > scales[0] if official else abs(1 - scales[1]) < abs(1 - scales[0])
        scales = [scales[width_wins]] * 2
    sides = []
    for side, goal, scale in zip(source, goals, scales, strict=True):
        multiples = scale * side / multiple
        count = round(multiples)
        if official and count * multiple < goal:
            count = math.ceil(multiples)
        sides.append(max(count, 1) * multiple)
    return sides[0], sides[1]


def lookup_tables(factor: float | None, statistics: Statistics | None) -> Float32[np.ndarray, "3 256"]:
    """Tabulate what each 8-bit level becomes in the "huggingface" recipe, per channel.

    Transformers rescales in float64, rounds to float32, and normalises in float32: (level * factor - mean) / std.
    None leaves a step out.
    """
    levels = np.arange(256, dtype=np.float64)
    tables = np.tile((levels if factor is None else levels * factor).astype(np.float32), (3, 1))
    if statistics is not None:
        mean, deviation = (np.array(values, np.float32)[:, None] for values in statistics)
        tables = (tables - mean) / deviation
    return tables


def official_pixels(
    image: UInt8[np.ndarray, "source_height source_width 3"],
    size: tuple[int, int],
    factor: float | None,
    statistics: Statistics | None,
) -> Float32[np.ndarray, "height width 3"]:
    """Resize and normalise as Depth-Anything-V2's `image2tensor` does, to (height, width).

    Its order is: rescale in float64, OpenCV's INTER_CUBIC (a = -0.75, no antialiasing), (x - mean) / std in float64,
    then float32. The weights of each output sum to 1, so rescaling after the resize is the same, on fewer pixels.
    """
    pixels: np.ndarray = image
    if size != image.shape[:2]:
        rows = cubic_matrix(image.shape[0], size[0], coordinates="opencv")
        columns = cubic_matrix(image.shape[1], size[1], coordinates="opencv")
        pixels = apply_rows(columns, apply_rows(rows, image).swapaxes(0, 1)).swapaxes(0, 1)
    if factor is not None:
        pixels = pixels * factor
    if statistics is not None:
        mean, deviation = (np.array(values) for values in statistics)
        pixels = (pixels - mean) / deviation
    return np.ascontiguousarray(pixels, np.float32)
