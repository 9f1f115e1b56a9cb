"""Transformers' `preprocessor_config.json`: read within bounds, checked field by field."""

from typing import Any

from dajax.errors import ConfigError, shown

# Class names that Transformers has written for this processor over the years.
_KNOWN_TYPES = ("DPTImageProcessor", "DPTFeatureExtractor", "DPTImageProcessorFast", "DPTImageProcessorPil")
# What Transformers' DPTImageProcessor takes for a field that its file leaves out. (These are not Depth Anything's.)
FILE_DEFAULTS: dict[str, Any] = {
    "do_resize": True,
    "size": {"height": 384, "width": 384},
    "ensure_multiple_of": 1,
    "keep_aspect_ratio": False,
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
}


def parse_fields(fields: dict[str, Any], source: str) -> dict[str, Any]:
    """Check the fields of a file and fill those that it leaves out.

    Args:
        fields: the parsed file. Fields that do not concern the pixels are ignored.
        source: what error messages call the file.

    Returns:
        The fields of `FILE_DEFAULTS` and "style", of the right types; "size" as (height, width). Bounds are not checked
        here.

    Raises:
        ConfigError: a field is malformed, or the file is that of another processor.
    """
    kind = fields.get("image_processor_type", fields.get("feature_extractor_type"))
    if kind is not None and kind not in _KNOWN_TYPES:
        raise ConfigError(f"{source}: image_processor_type is {shown(kind)}, expected DPTImageProcessor")
    if fields.get("do_pad"):
        raise ConfigError(f"{source}: do_pad is set; Depth Anything's processor does not pad")
    known = {key: default if fields.get(key) is None else fields[key] for key, default in FILE_DEFAULTS.items()}
    for key in ("keep_aspect_ratio", "do_resize", "do_rescale", "do_normalize"):
        if not isinstance(known[key], bool):
            raise ConfigError(f"{source}: {key} must be true or false, got {shown(known[key])}")
    known["style"] = "huggingface" if fields.get("style") is None else fields["style"]
    if not isinstance(known["style"], str):
        raise ConfigError(f"{source}: style must be 'huggingface' or 'official', got {shown(known['style'])}")
    size = known["size"]
    if isinstance(size, int):
        size = {"height": size, "width": size}
    if not isinstance(size, dict) or set(size) != {"height", "width"}:
        raise ConfigError(f"{source}: size must be a number, or have height and width, got {shown(size)}")
    known["size"] = (size["height"], size["width"])
    if not all(isinstance(side, int) for side in known["size"]):
        raise ConfigError(f"{source}: size must be whole numbers, got {shown(size)}")
    for key in ("image_mean", "image_std"):
        if isinstance(known[key], int | float):  # Transformers takes one number for all channels
            known[key] = [known[key]] * 3
        check_numbers(f"{source}: {key}", known[key], 3)
    check_numbers(f"{source}: rescale_factor", [known["rescale_factor"]], 1)
    if not isinstance(known["ensure_multiple_of"], int) or not isinstance(known["resample"], int):
        raise ConfigError(f"{source}: ensure_multiple_of and resample must be whole numbers")
    return known


def check_numbers(field: str, values: Any, count: int, low: float = -1e6, high: float = 1e6) -> None:
    """Check a field that holds numbers between two bounds. Pixels and depth are finite with all of these.

    Raises:
        ConfigError: it does not hold `count` of them.
    """
    is_list = isinstance(values, list | tuple) and len(values) == count
    if not is_list or not all(
        isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high for value in values
    ):
        what = f"{count} numbers" if count > 1 else "a number"
        raise ConfigError(f"{field} must be {what} from {low:g} to {high:g}, got {shown(values)}")
