"""The one family of errors that dajax raises on purpose.

A message says what was wrong, in which file, tensor or field, what was expected and found, and what to try.
"""


class DajaxError(Exception):
    """Base of every error that dajax raises on purpose."""


class ConfigError(DajaxError, ValueError):
    """A configuration is malformed, out of bounds, or describes a model that dajax does not build."""


class WeightsError(DajaxError, ValueError):
    """A checkpoint is damaged, incomplete, of another architecture, or cannot be read or written."""


class ImageError(DajaxError, ValueError):
    """An image (file, array or PIL image) cannot be read or is not what it was declared to be."""


class HubError(DajaxError, OSError):
    """A file cannot be had from the Hugging Face Hub."""


class JobError(DajaxError, RuntimeError):
    """A job over many images, or a training run, cannot start or go on."""


class JobRefusedError(JobError):
    """A job cannot go on as it is asked for: the same call would be refused again."""


class LicenceWarning(UserWarning):
    """The weights that are loaded do not come under a permissive licence, or under none that is stated."""


class AssumedKindWarning(UserWarning):
    """A file of weights does not say what kind of model it is, and Depth Anything V2 relative is assumed."""


def missing_extra(extra: str, what: str) -> str:
    """Return the message about a package that is not installed.

    Args:
        extra: the extra of depth-anything-jax that brings the package.
        what: what needs it, and which package that is: "videos need PyAV".
    """
    return f"{what}: run pip install '.[{extra}]' in the folder of the repository"


def shown(value: object) -> str:
    """Return a short form of a value from outside, for a message."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits; lists within lists
        return f"an extreme {type(value).__name__}"
    return text if len(text) <= 200 else f"{text[:200]}…"
