"""`dajax predict`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from dajax.cli.arguments import UsageError
from dajax.cli.messages import say
from dajax.cli.model_options import DEFAULT_MODEL, ModelOptions, make_estimator, say_compiling
from dajax.cli.options import Flag, unset, value_of
from dajax.cli.options import value_range as range_of
from dajax.depth_maps.encode import Raw
from dajax.geometry.point_files import CloudForm
from dajax.images.pixels import ValueRange
from dajax.preprocessing.buckets import Policy

if TYPE_CHECKING:
    from dajax.geometry.cloud import Cloud
    from dajax.inference.estimator import DepthEstimator
    from dajax.inference.image_files import FilesReport

INTERRUPTED = "interrupted; the depth maps that were finished are whole"


def predict(
    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES...", help_behavior_hint="")],
    /,
    model: Annotated[ModelOptions, tyro.conf.arg(help="")],
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="PATH")] = Path("."),
    colormap: Annotated[str, tyro.conf.arg(metavar="NAME")] = "Spectral_r",
    side_by_side: Flag = False,
    raw: Raw = "none",
    png_scale: Annotated[float | None, value_of(float), unset("METRES", "each file has its own")] = None,
    points: Literal["none", CloudForm] = "none",
    field_of_view: Annotated[float | None, value_of(float), unset("DEGREES", "what EXIF data says")] = None,
    focal_length: Annotated[float | None, value_of(float), unset("PIXELS", "what EXIF data says")] = None,
    known_points: Annotated[Path | None, value_of(Path), unset("FILE", "none")] = None,
    max_depth: Annotated[float | None, value_of(float), unset("METRES", "80 with --known-points")] = None,
    tiles: Annotated[int | None, value_of(int), unset("N", "none")] = None,
    buckets: Annotated[int | None, value_of(int), unset("N", "none")] = None,
    policy: Policy = "resize",
    value_range: Annotated[ValueRange | None, value_of(range_of), unset("auto|LO,HI", "what the type holds")] = None,
    partial: Flag = False,
    batch_size: Annotated[int, tyro.conf.arg(metavar="N")] = 1,
) -> int:
    """Estimate the depth of images, and write a coloured depth map for each.

    Example: dajax predict room.jpg --model tiny

    Near is red and far is blue. `room.jpg` becomes `room_depth.png`; with --raw the depth itself is written too:
    affine-invariant inverse depth (bigger is nearer), or metres for metric models. In folders, depth maps of earlier
    runs are passed over. The image of a URL is downloaded without a proxy, up to 100 MB and 30 seconds.

    Exit status: 0 all done, 1 failed, 2 bad usage, 3 some images were left out, 130 interrupted.

    Args:
        images: files, folders or patterns such as 'images/*.jpg', - for one image on standard input, and at most one
            http(s) URL. Put -- before names that begin with a dash.
        model: the model, and how it runs.
        output: the folder for depth maps; or, for one image, a .png, .jpg or .webp file.
        colormap: Spectral_r, inferno, turbo, gray, ...; with matplotlib installed any of its names.
        side_by_side: Put the image left of its depth map.
        raw: also write the depth: npy, tiff, pfm or exr (float32), npz (float32, with unit and model) or png16 (16-bit
            PNG with its scale in the metadata). Beside npy and pfm, a .json file says unit and model.
        png_scale: the metres of a step of --raw png16, as RGB-D tools expect: 0.001 for millimetres. Values that do not
            fit are stored as 0 and counted.
        points: also write a point cloud (ply, glb) or a surface (mesh, a .glb file), in metres. It needs a metric
            model, or --known-points.
        field_of_view: what the camera shows from left to right.
        focal_length: the focal length of the camera.
        known_points: a CSV file with columns column,row,metres of at least two points of the one image; they turn a
            relative model's depth into metres, also that of --raw.
        max_depth: Leave farther points out of --points.
        tiles: For large images: estimate this many overlapping parts along the longer side, for finer detail.
        buckets: Process images at no more than this many sizes, for few compilations.
        policy: Stretch images to their bucket's size, or pad them. Padding keeps their aspect ratio.
        value_range: For files of more than 8 bits: the values that become black and white, or auto, the smallest and
            the largest of each image. Files of 8 bits stay as they are.
        partial: Take what there is of images that break off.
        batch_size: how many images of one size are run together.
    """
    if not images:
        raise UsageError("name at least one image, folder, pattern or URL, or - for standard input")
    if points == "none" and (field_of_view, focal_length, known_points, max_depth) != (None,) * 4:
        raise UsageError("--field-of-view, --focal-length, --known-points and --max-depth go with --points")
    if png_scale is not None and raw != "png16":
        raise UsageError("--png-scale goes with --raw png16")
    if tiles is not None and buckets is not None:
        raise UsageError("--tiles and --buckets cannot be used together: tiles have one size anyway")
    if tiles is not None and tiles < 1:
        raise UsageError(f"--tiles must be at least 1, got {tiles}")
    start = time.perf_counter()
    from dajax.depth_maps.encode import encoded
    from dajax.images.find import passed_over_text
    from dajax.inference.image_files import predict_files
    from dajax.inference.inputs import find_inputs
    from dajax.inference.outputs import check_output
    from dajax.progress import ProgressBar

    with _standard_input(images) as (named, standard_input):
        inputs = find_inputs(named, output, allow_urls=True)
        if inputs.passed_over:
            say("predict", f"passed over: {passed_over_text(inputs.passed_over)}")
        # The file of standard input has another place in every run, but its outputs are replaced.
        found = [replace(one, identity="-") if str(one.source) == standard_input else one for one in inputs.images]
        check_output(output, colormap, images=len(found))
        cloud = None if points == "none" else _cloud(points, field_of_view, focal_length, known_points, max_depth)
        if raw != "none":
            # What is not installed, or cannot be used, shows before a model is loaded.
            encoded(raw, [[0.0]], kind="metric", png_scale=png_scale)
        estimator = make_estimator(model, batch_size=batch_size, buckets=buckets, policy=policy)
        if cloud is not None:
            cloud.check("metric" if estimator.model.config.is_metric else "relative", images=len(found))
        name = model.model or DEFAULT_MODEL
        with ProgressBar("dajax predict", len(found), show=len(found) > 1) as bar:
            say_compiling(estimator, bar)
            report = predict_files(
                estimator,
                found,
                output,
                allow_urls=True,
                colormap=colormap,
                side_by_side=side_by_side,
                raw=raw,
                png_scale=png_scale,
                cloud=cloud,
                tiles=tiles,
                value_range=value_range,
                allow_truncated=partial,
                model=name,
                on_done=lambda image: bar.advance(),
            )
    report.rejects[:0] = inputs.unlisted
    standard_input_file = Path(named[images.index("-")]) if "-" in images else None
    _say("", report.notes, standard_input_file)
    _say("left out ", report.rejects, standard_input_file)
    unit = "metres" if estimator.model.config.is_metric else "inverse depth, bigger is nearer"
    unit += "; metres by known points" if known_points else ""
    count = len(found) + len(inputs.unlisted)
    print(_summary(report, count, f"{_printable(name)} ({unit})", output, estimator, time.perf_counter() - start))
    return 3 if report.rejects else 0


def _summary(
    report: FilesReport, images: int, model: str, output: Path, estimator: DepthEstimator, seconds: float
) -> str:
    count = len(report.written)
    files = _printable(report.written[0]) if count == 1 else f"{count} files to {_printable(output)}"
    return (
        f"{images - len(report.rejects)} of {images} image{'s' * (images != 1)} in {seconds:.1f} s, "
        f"{model}, {estimator.dtype} on {estimator.device}; wrote {files if count else 'nothing'}"
    )


@contextmanager
def _standard_input(images: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str | None]]:
    """Put the image of standard input, if there is one, into a temporary file. Yield all images, and that file."""
    from dajax.limits import MAX_IMAGE_BYTES

    if "-" not in images:
        yield images, None
        return
    if images.count("-") > 1:
        raise UsageError("- stands for the one image on standard input: give it once")
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("- reads an image from standard input, as in: dajax predict - < room.jpg")
    data = sys.stdin.buffer.read(MAX_IMAGE_BYTES + 1)
    if not data:
        raise UsageError("standard input is empty: there is no image in it")
    if len(data) > MAX_IMAGE_BYTES:
        raise UsageError(f"the image on standard input has more than {MAX_IMAGE_BYTES:,} bytes")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "stdin"
        path.write_bytes(data)
        yield tuple(str(path) if image == "-" else image for image in images), str(path)


def _cloud(
    points: CloudForm,
    field_of_view: float | None,
    focal_length: float | None,
    known: Path | None,
    max_depth: float | None,
) -> Cloud:
    from dajax.geometry.cloud import Cloud, read_known_points

    return Cloud(points, field_of_view, focal_length, None if known is None else read_known_points(known), max_depth)


def _say(what: str, sentences: list[tuple[Path | str, str]], standard_input: Path | None) -> None:
    from dajax.images.urls import is_url, redacted

    for image, reason in sentences:
        quoted = redacted(image) if is_url(image) else repr(str(image))
        named = reason if reason.startswith(quoted) else f"{quoted}: {reason}"
        if image == standard_input:
            named = named.replace(quoted, "standard input", 1)
        say("predict", what + named)


def _printable(name: str | Path) -> str:
    """Return the name, quoted if it has newlines or bytes that a terminal cannot show."""
    return str(name) if str(name).isprintable() else repr(str(name))
