"""The program of a decoder process, which reads images for a job. If it dies, the job goes on.

It loads neither jax nor the model. Its arguments are the descriptor of its socket, the id of the job's process, and the
options of its `Buckets` as JSON. A request is the JSON of a location; the answer is JSON, followed by the pixels if the
image could be read.
"""

from __future__ import annotations

import ctypes
import errno
import io
import json
import os
import signal
import sys
import threading
import time
import warnings
from multiprocessing.connection import Connection
from typing import Any

from dajax.batch.remote import file_system, is_remote
from dajax.errors import ImageError
from dajax.images.read import read_image
from dajax.preprocessing.buckets import Buckets

# Errors that are not the image's fault: the job stops instead of leaving images out. EIO is not among them: a bad spot
# of a disk stays bad, and concerns one image.
_OF_THE_MACHINE = {
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    # A network disk or a bucket cannot be reached.
    errno.ESTALE,
    errno.ENOTCONN,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.EPIPE,
    errno.ESHUTDOWN,
}
# The message that says that the process takes requests.
READY = b"ready"
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
        except (EOFError, OSError):
            return
        answer, pixels = answered(request, processor)
        try:
            connection.send_bytes(json.dumps(answer).encode())
            if pixels is not None:
                connection.send_bytes(pixels)
        except OSError:
            return


def answered(request: dict[str, Any], processor: Buckets) -> tuple[dict[str, Any], Any]:
    """Return the answer about an image, and its pixels (float32 [height, width, 3]) if it could be read."""
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", UserWarning)
        try:
            source = _bytes_or_path(request)
            taken = processor.process(read_image(source, name=repr(request["path"]), **_reading(request)))
        except ImageError as error:
            return {"error": str(error), "machine": _is_of_the_machine(error.__cause__)}, None
        except MemoryError:
            return {"error": "there is not enough memory to read it", "machine": False}, None
        except OSError as error:
            return {"error": error.strerror or str(error), "machine": _is_of_the_machine(error)}, None
        except Exception as error:
            return {"error": f"cannot be read ({type(error).__name__}: {error})", "machine": False}, None
    said = [str(note.message) for note in notes if issubclass(note.category, UserWarning)]
    about = {"shape": taken.pixels.shape, "size": taken.source_size, "content": taken.content, "notes": said}
    return about, taken.pixels


def _is_of_the_machine(error: BaseException | None) -> bool:
    """Return whether other images would have failed, too."""
    return isinstance(error, ConnectionError | TimeoutError) or getattr(error, "errno", None) in _OF_THE_MACHINE


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
