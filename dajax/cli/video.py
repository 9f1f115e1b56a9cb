"""`dajax video`."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import tyro

from dajax.cli.messages import say
from dajax.cli.model_options import DEFAULT_MODEL, ModelOptions, make_estimator, say_compiling
from dajax.cli.options import settings_options
from dajax.cli.stopping import stopping
from dajax.video.run import VideoSettings

INTERRUPTED = "interrupted before a frame was finished; no video was written"

_SETTINGS = settings_options(
    VideoSettings,
    metavars={"colormap": "NAME", "limits": "LO HI", "seconds": "SECONDS"},
    unset_hints={"limits": "those of frames spread over the video", "seconds": "all of it"},
)


def video(
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="IN")],
    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    /,
    model: Annotated[ModelOptions, tyro.conf.arg(help="")],
    depth: Annotated[VideoSettings, tyro.conf.arg(constructor=_SETTINGS, help="")],
    batch_size: Annotated[int, tyro.conf.arg(metavar="N")] = 4,
) -> int:
    """Make a video of the depth of a video: as many frames, at the same times, in colours that stay the same.

    Example: dajax video walk.mp4 walk_depth.mp4 --side-by-side

    Near is red and far is blue. Frames are taken as players show them: upright, with square pixels, opaque, and not
    HDR. Where the video breaks off, what there was is kept as OUT with .partial in its name; a first Ctrl-C does the
    same, a second one ends at once.

    Exit status: 0 all done, 1 failed, 2 bad usage, 3 partly done (standard error says why), 130 interrupted.

    Args:
        source: a video, or webcam:0 for the first camera (Ctrl-C ends it).
        output: a .mp4, .mov, .mkv or .webm file.
        model: the model, and how it runs.
        depth: how the video is done.
        batch_size: how many frames are run together.
    """
    start = time.perf_counter()
    from dajax.progress import ProgressBar
    from dajax.video.opening import import_av
    from dajax.video.run import depth_video

    import_av()
    depth.check()
    estimator = make_estimator(model, batch_size=batch_size)
    name = model.model or DEFAULT_MODEL
    with ProgressBar("dajax video", None, unit="frame") as bar, _stopping() as stop:
        say_compiling(estimator, bar)
        report = depth_video(
            estimator,
            source,
            output,
            depth,
            model=name,
            on_start=lambda expected: bar.begin(expected or None),
            on_frame=bar.advance,
            stop=stop,
        )
    took = time.perf_counter() - start
    files = ", ".join(map(str, report.written))
    unit = "metres" if estimator.model.config.is_metric else "inverse depth, bigger is nearer"
    print(
        f"{report.frames} frames in {took:.1f} s ({report.frames / took:.1f} a second), {name} ({unit}), "
        f"{estimator.dtype} on {estimator.device}; colours from {report.limits[0]:.4g} to {report.limits[1]:.4g}; "
        f"wrote {files}"
    )
    for note in report.notes:
        say("video", note)
    if report.problem:
        say("video", f"the video is not whole: {report.problem}")
        return 3
    return 0


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """Give an event that the first Ctrl-C or SIGTERM sets; a second one ends the process."""

    def interrupt(number: int) -> None:
        raise KeyboardInterrupt

    with stopping("dajax video: finishing; once more to stop at once", on_second=interrupt) as stop:
        yield stop
