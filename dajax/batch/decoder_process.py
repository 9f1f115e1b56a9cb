"""The program of a decoder process, which reads images for a job. If it dies, the job goes on.

It loads neither jax nor the model. Its arguments are the descriptor of its socket, the id of the job's process, and the
options of its `Buckets` as JSON. A request is JSON that says where the image is, or is followed by the encoded image.
The answer is JSON, followed by the pixels if the image could be read.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import re
import signal
import sys
import threading
import time
import warnings
from multiprocessing.connection import Connection
from typing import Any

from dajax.batch.remote import file_system, is_remote
from dajax.batch.stamps import stamp_of
from dajax.errors import ImageError
from dajax.files import is_of_the_machine
from dajax.images.read import read_image
from dajax.preprocessing.buckets import Buckets

# The message that says that the process takes requests.
READY = b"ready"
# What a job's settings do not have.
_ADVICE = re.compile(r"\bfind_images\b|\b[Pp]ass (?!value_range|allow_truncated)")
_PR_SET_PDEATHSIG = 1


def main(descriptor: int, parent: int) -> None:
    """Answer requests until the other end of the socket is closed."""
    # The job's process ends this one. A terminal's Ctrl-C reaches both, and must not end this one earlier.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _end_with(parent)
    connection = Connection(descriptor)
    processor = Buckets.from_options(json.loads(sys.argv[3]))
    try:
        connection.send_bytes(READY)
    except OSError:
        return
    while True:
        try:
            request = json.loads(connection.recv_bytes())
            data = connection.recv_bytes() if request["has_data"] else None
        except (EOFError, OSError):
            return
        answer, pixels = answered(request, data, processor)
        try:
            connection.send_bytes(json.dumps(answer).encode())
            if pixels is not None:
                connection.send_bytes(pixels)
        except OSError:
            return


def answered(request: dict[str, Any], data: bytes | None, processor: Buckets) -> tuple[dict[str, Any], Any]:
    """Return the answer about an image, and its pixels (float32 [height, width, 3]) if it could be read.

    Args:
        request: see `Decoders`.
        data: the encoded image, if the request does not say where it is.
        processor: makes pixels of it.
    """
    # From before it is read: a change while it is read shows later, too.
    stamp = stamp_of(request["path"]) if request["needs_stamp"] else ""
    answer, pixels = _read(request, data, processor)
    return answer | {"stamp": stamp}, pixels


def _read(request: dict[str, Any], data: bytes | None, processor: Buckets) -> tuple[dict[str, Any], Any]:
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", UserWarning)
        try:
            source = _bytes_or_path(request) if data is None else data
            taken = processor.process(read_image(source, name=repr(request["name"]), **_reading(request)))
        except ImageError as error:
            return {"error": _of_jobs(str(error)), "machine": is_of_the_machine(error.__cause__)}, None
        except MemoryError:
            return {"error": "there is not enough memory to read it", "machine": False}, None
        except OSError as error:
            return {"error": error.strerror or str(error), "machine": is_of_the_machine(error)}, None
        except Exception as error:
            return {"error": f"cannot be read ({type(error).__name__}: {error})", "machine": False}, None
    said = [str(note.message) for note in notes if issubclass(note.category, UserWarning)]
    about = {"shape": taken.pixels.shape, "size": taken.source_size, "content": taken.content, "notes": said}
    return about, taken.pixels


def _of_jobs(message: str) -> str:
    """Return a message of `read_image` without the advice to pass what a job does not pass on."""
    sentences = re.split(r"(?<=[.;]) ", message.replace("max_pixels=", "the limit of "))
    return " ".join(one for one in sentences if not _ADVICE.search(one)).rstrip("; ")


def _reading(request: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `read_image`: JSON has no tuples."""
    reading = dict(request.get("reading", {}))
    if isinstance(reading.get("value_range"), list):
        reading["value_range"] = tuple(reading["value_range"])
    return reading


def _bytes_or_path(request: dict[str, Any]) -> Any:
    path, offset, size = request["path"], request["offset"], request["size"]
    if is_remote(path):
        system, inside = file_system(path)
        end = None if size is None else offset + size
        try:
            return io.BytesIO(system.cat_file(inside, start=offset or None, end=end))
        except OSError:
            raise
        except Exception as error:  # an error class of the client, which has tried several times
            raise ConnectionError(f"cannot be read ({type(error).__name__}: {error})") from error
    if size is None:
        return path
    with open(path, "rb") as file:
        file.seek(offset)
        return io.BytesIO(file.read(size))


def _end_with(parent: int) -> None:
    """End this process when the job's process ends, even if an image decoder never returns."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
