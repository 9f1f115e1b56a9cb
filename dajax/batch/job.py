"""What a job was begun with: a resume with anything else would mix outputs, and is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dajax.batch.storage import Storage
from dajax.errors import JobRefusedError
from dajax.weights.tree import flatten

if TYPE_CHECKING:
    from dajax.inference.estimator import DepthEstimator

JOB = ".dajax/job.json"


def weights_digest(params: Mapping[str, Any]) -> str:
    """Return the SHA-256 of all params, with their names, types and shapes."""
    found = hashlib.sha256()
    for path, leaf in sorted(flatten(params).items()):
        array = np.asarray(leaf)
        found.update(f"{path} {array.dtype} {array.shape}\n".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def keys_digest(keys: Iterable[str]) -> str:
    """Return the SHA-256 of a list of keys."""
    found = hashlib.sha256()
    for key in keys:
        found.update(json.dumps(key).encode("ascii") + b"\n")
    return found.hexdigest()


def describe_estimator(estimator: DepthEstimator) -> dict[str, Any]:
    """Return what of an estimator decides about values."""
    return {
        "weights": weights_digest(estimator.params),
        "config": estimator.model.config.to_dict(),
        "dtype": estimator.dtype,
        "style": estimator.model.config.style,
        "processor": estimator.processor.to_dict(),
    }


def claim(storage: Storage, parameters: Mapping[str, Any], keys: str) -> bool:
    """Write the job file, or see that it says the same; return whether the items are the same as well.

    Args:
        storage: of the output.
        parameters: what must not change.
        keys: digest of the source's keys.

    Raises:
        JobError: the output folder has a job with other parameters: the message names them.
    """
    text = json.dumps({"parameters": parameters, "keys": keys}, indent=2, sort_keys=True) + "\n"
    if storage.create(JOB, text.encode("ascii")):
        return True
    with storage.open(JOB) as file:
        data = file.read()
    try:
        found = json.loads(data)
        before, keys_before = found["parameters"], found["keys"]
    except (ValueError, KeyError, TypeError) as error:
        raise JobRefusedError(f"{storage}: {JOB} is damaged ({error}); its outputs may be of any job") from error
    # As JSON gives it back: tuples are lists there.
    after = json.loads(text)["parameters"]
    other = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    if other:
        differences = "; ".join(_difference(name, before.get(name), after.get(name)) for name in other)
        raise JobRefusedError(
            f"{storage} has a job that was begun with other parameters: {differences}. Give the same ones to go on, or "
            "choose another output folder"
        )
    return bool(keys_before == keys)


def _difference(name: str, before: Any, after: Any) -> str:
    if isinstance(before, dict) and isinstance(after, dict):
        inner = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
        return ", ".join(_difference(f"{name}.{key}", before.get(key), after.get(key)) for key in inner)
    return f"{name} was {_short(before)} and is {_short(after)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:24]}…{text[-8:]}"
