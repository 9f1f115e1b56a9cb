"""What a job was begun with. A later run that says anything else would mix outputs, so it is refused."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from flax.traverse_util import flatten_dict

from dajax.batch.job_settings import BatchSettings
from dajax.batch.remote import is_remote
from dajax.batch.storage import Storage
from dajax.checkpoints import licence_of
from dajax.depth_maps.encode import EXR_CHANNELS, described
from dajax.errors import JobRefusedError
from dajax.numerics import NUMERICS

if TYPE_CHECKING:
    from dajax.inference.estimator import DepthEstimator

JOB = ".dajax/job.json"
# The number of the layout of a job's output folder: names of outputs, output shards, the manifest and the job file.
# Raise it by one in each change after which a job that was begun before cannot go on.
JOB_FORMAT = 2


def weights_digest(params: Mapping[str, Any]) -> str:
    """Return the SHA-256 of all params, with their names, types and shapes."""
    found = hashlib.sha256()
    for path, leaf in sorted(flatten_dict(params, sep="/").items()):
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


def job_parameters(
    estimator: DepthEstimator, source: str, settings: BatchSettings, batch_size: int, model: str
) -> dict[str, Any]:
    """Return everything that decides about the values or the names of a job's outputs."""
    config = estimator.model.config
    return {
        "numerics": NUMERICS,
        "model": model,
        "weights": weights_digest(estimator.params),
        "config": config.to_dict(),
        "dtype": estimator.dtype,
        "kernels": estimator.model.kernels,
        "style": config.style,
        "processor": estimator.processor.to_dict(),
        "source": source if is_remote(source) else os.path.abspath(source),
        "column": settings.column,
        "formats": list(settings.formats),
        "values": settings.values,
        "png_scale": settings.png_scale,
        "exr_channels": EXR_CHANNELS if "exr" in settings.formats else None,
        "size": settings.size,
        "colormap": settings.colormap if "color" in settings.formats else None,
        "shards": settings.shards,
        "shard_format": settings.shard_format if settings.shards else None,
        "batch_size": batch_size,
        "buckets": settings.buckets,
        "policy": settings.policy if settings.buckets else None,
        "flip_disagreement": settings.flip_disagreement,
        "value_range": settings.value_range,
        "allow_truncated": settings.allow_truncated or None,
    }


def claim(storage: Storage, parameters: Mapping[str, Any], keys: str) -> bool:
    """Write the job file, or see that it says the same; return whether the source's items are the same as well.

    Args:
        storage: the output folder.
        parameters: what must not change, see `job_parameters`.
        keys: the digest of the source's keys.

    Raises:
        JobRefusedError: the output folder has a job of another job format, or with other parameters; the message names
            them.
    """
    # Version and licence are for those who read the file; they decide nothing.
    version, licence = described("relative", "")["version"], licence_of(parameters.get("model", ""))
    content = {"format": JOB_FORMAT, "dajax": version, "licence": licence, "parameters": parameters, "keys": keys}
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    if storage.create(JOB, text.encode("ascii")):
        return True
    before = _read(storage)
    after = json.loads(text)  # as JSON gives it back: tuples become lists
    differences = _differences(before["parameters"], after["parameters"])
    if differences:
        raise JobRefusedError(
            f"{storage} has a job that was begun with other parameters: {'; '.join(differences)}. Give the same ones "
            "to go on, or choose another output folder"
        )
    return bool(before["keys"] == keys)


def _read(storage: Storage) -> dict[str, Any]:
    """Return the content of the job file, of which it is certain that it has this version's format."""
    with storage.open(JOB) as file:
        data = file.read()
    try:
        found = json.loads(data)
        form = found.get("format")
        whole = isinstance(found["parameters"], dict) and isinstance(found["keys"], str)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise JobRefusedError(_damaged(storage, f"{type(error).__name__}: {error}")) from error
    if form != JOB_FORMAT:
        has = "no format number" if form is None else f"the format number {json.dumps(form)[:20]}"
        raise JobRefusedError(
            f"{storage}: another version of dajax began this job: {JOB} has {has}, and this version goes on with "
            f"format {JOB_FORMAT} only. Finish the job with the version that began it, or choose another output folder"
        )
    if not whole:
        raise JobRefusedError(_damaged(storage, "parameters or keys are of the wrong type"))
    return dict(found)


def _damaged(storage: Storage, reason: str) -> str:
    return (
        f"{storage}: {JOB} is damaged ({reason}), so it does not say what the outputs were made with. Choose another "
        "output folder"
    )


def _differences(before: Any, after: Any, name: str = "") -> list[str]:
    """Return a text for each value that differs."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
        return [
            text for key in keys for text in _differences(before.get(key), after.get(key), f"{name}.{key}".strip("."))
        ]
    meaning = " (this version of dajax computes other values)" if name == "numerics" else ""
    return [f"{name} was {_short(before)} and is {_short(after)}{meaning}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:24]}…{text[-8:]}"
