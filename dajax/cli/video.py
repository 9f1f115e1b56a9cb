"""`dajax video`."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dajax.cli.stopping import stopping


def video(
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="IN")],
    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    /,
    model: Annotated[str, tyro.conf.arg(aliases=["-m"], metavar="NAME")] = "small",
    colormap: Annotated[str, tyro.conf.arg(metavar="NAME")] = "Spectral_r",
    side_by_side: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    limits: Annotated[
        tuple[float, float] | None,
        tyro.conf.arg(metavar="LO HI", help_behavior_hint="(default: of frames spread over the video)"),
    ] = None,
    smooth: bool = True,
    audio: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    raw: Literal["none", "ffv1", "npz"] = "none",
    raw_size: Literal["source", "model"] = "source",
    seconds: Annotated[
        float | None, tyro.conf.arg(metavar="SECONDS", help_behavior_hint="(default: all of it)")
    ] = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    input_size: Annotated[
        int | None, tyro.conf.arg(metavar="PIXELS", help_behavior_hint="(default: the checkpoint's, 518)")
    ] = None,
    style: Annotated[
        Literal["huggingface", "official"] | None,
        tyro.conf.arg(metavar="{huggingface,official}", help_behavior_hint="(default: the checkpoint's, huggingface)"),
    ] = None,
    batch_size: Annotated[int, tyro.conf.arg(metavar="N")] = 4,
    cache: bool = True,
) -> int:
    """Make a video of the depth of a video: as many frames, at the same times, in colours that stay the same.

    Near is red and far is blue. Depth is steadied: each frame's scale and shift are fitted to its neighbours', and
    pixels are averaged along the motion of the image. Frames are turned upright. Where the video breaks off, what
    there was is kept as OUT with .partial in its name.

    Exit status: 0 all done, 1 failed, 2 bad usage, 3 partly done (standard error says why).

    Args:
        source: a video, or webcam:0 for the first camera (Ctrl-C ends it).
        output: a .mp4, .mov, .mkv or .webm file.
        model: an alias (see `dajax models`), a Hub id, a checkpoint folder, or a .safetensors, .pth or .bin file.
        colormap: Spectral_r, inferno, turbo, gray, ...; with matplotlib installed any of its names.
        side_by_side: put the image left of its map.
        limits: depth at the ends of the colours.
        smooth: steady the depth.
        audio: copy the video's audio.
        raw: also write the depth: ffv1 (16-bit FFV1 in OUT_depth.mkv, with its scale in OUT_depth.json) or npz
            (float32, large).
        raw_size: of that: the video's size, or the network's.
        seconds: stop after so many.
        dtype: what to compute in.
        input_size: about how many pixels a side is scaled to before the network.
        style: sizes and resampling as Transformers does (huggingface) or as the authors' code does (official).
        batch_size: frames that are run together.
        cache: keep compiled programs in $JAX_COMPILATION_CACHE_DIR or ~/.cache/dajax: the next run starts faster.
    """
    from dajax.errors import ConfigError, DajaxError, ImageError

    start = time.perf_counter()
    try:
        from dajax.inference.compilation_cache import enable_compilation_cache
        from dajax.inference.estimator import DepthEstimator
        from dajax.video.reading import import_av
        from dajax.video.run import VideoSettings, depth_video

        import_av()
        settings = VideoSettings(colormap, side_by_side, raw, raw_size, smooth, audio, limits, seconds)
        settings.check()
        if cache:
            enable_compilation_cache()
        estimator = DepthEstimator(model, dtype=dtype, input_size=input_size, style=style, batch_size=batch_size)
        from tqdm import tqdm

        with tqdm(unit="frame", disable=None if sys.stderr else True) as bar, _stopping() as stop:

            def begin(expected: int) -> None:
                bar.reset(expected or None)

            report = depth_video(
                estimator, source, output, settings, model=model, on_start=begin, on_frame=bar.update, stop=stop
            )
    except (ImageError, ConfigError) as error:
        print(f"dajax video: {error}", file=sys.stderr)
        return 2
    except DajaxError as error:
        print(f"dajax video: {error}", file=sys.stderr)
        return 1
    took = time.perf_counter() - start
    files = ", ".join(map(str, report.written))
    unit = "metres" if estimator.model.config.is_metric else "inverse depth, bigger is nearer"
    print(
        f"{report.frames} frames in {took:.1f} s ({report.frames / took:.1f} a second), {model} ({unit}), "
        f"{estimator.dtype} on {estimator.device}; colours from {report.limits[0]:.4g} to {report.limits[1]:.4g}; "
        f"wrote {files}"
    )
    if report.problem:
        print(f"dajax video: the video is not whole: {report.problem}", file=sys.stderr)
        return 3
    return 0


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """Give an event that the first Ctrl-C or SIGTERM sets; a second one ends the process."""

    def interrupt(number: int) -> None:
        raise KeyboardInterrupt

    with stopping("dajax video: finishing; once more to stop at once", on_second=interrupt) as stop:
        yield stop
