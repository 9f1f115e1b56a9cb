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
    """A job over many images cannot start or go on."""
