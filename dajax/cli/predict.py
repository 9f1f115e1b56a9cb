"""`dajax predict`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import tyro


def predict(
    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES...", help_behavior_hint="")],
    /,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="DIR")] = Path("."),
    model: Annotated[str, tyro.conf.arg(aliases=["-m"], metavar="NAME")] = "small",
    colormap: Annotated[str, tyro.conf.arg(metavar="NAME")] = "Spectral_r",
    side_by_side: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    raw: Literal["none", "npy", "npz", "png16", "tiff", "pfm", "exr"] = "none",
    points: Literal["none", "ply", "glb", "mesh"] = "none",
    field_of_view: Annotated[
        float | None, tyro.conf.arg(metavar="DEGREES", help_behavior_hint="(default: what EXIF data says)")
    ] = None,
    focal_length: Annotated[
        float | None, tyro.conf.arg(metavar="PIXELS", help_behavior_hint="(default: what EXIF data says)")
    ] = None,
    known_points: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: none)")] = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    input_size: Annotated[
        int | None, tyro.conf.arg(metavar="PIXELS", help_behavior_hint="(default: the checkpoint's, 518)")
    ] = None,
    style: Annotated[
        Literal["huggingface", "official"] | None,
        tyro.conf.arg(metavar="{huggingface,official}", help_behavior_hint="(default: the checkpoint's, huggingface)"),
    ] = None,
    tiles: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: none)")] = None,
    batch_size: Annotated[int, tyro.conf.arg(metavar="N")] = 1,
    cache: bool = True,
) -> int:
    """Estimate the depth of images; write a coloured map for each.

    Near is red and far is blue, whatever the model's unit. `room.jpg` becomes `room_depth.png`; with --raw also the
    depth itself: affine-invariant inverse depth (bigger is nearer), or metres for metric models. Maps of a former run
    that are in a folder are passed over. The image of a URL is downloaded without a proxy, up to 100 MB and 30
    seconds, and its map is named after the end of the URL's path.

    Exit status: 0 all done, 1 failed, 2 bad usage, 3 some images were left out (standard error says which and why).

    Args:
        images: files, folders or patterns such as 'images/*.jpg', and at most one http(s) URL. Put -- before names
            that begin with a dash.
        output: folder for the maps; made if need be.
        model: an alias (see `dajax models`), a Hub id, a checkpoint folder, or a .safetensors, .pth or .bin file.
        colormap: Spectral_r, inferno, turbo, gray, ...; with matplotlib installed any of its names.
        side_by_side: put the image left of its map.
        raw: also write the depth: npy, tiff, pfm or exr (float32), npz (float32, with unit and model) or png16 (16-bit
            PNG with its scale in the metadata); beside npy and pfm a .json says unit and model.
        points: also write a point cloud (ply, glb) or a surface (mesh, a .glb), in metres: with a metric model, or
            with --known-points.
        field_of_view: of the camera, from left to right.
        focal_length: of the camera.
        known_points: CSV file with columns column,row,metres of two points or more of the one image; they make metres
            of a relative model's depth.
        dtype: what to compute in.
        input_size: about how many pixels a side is scaled to before the network.
        style: sizes and resampling as Transformers does (huggingface) or as the authors' code does (official).
        tiles: for large images: estimate so many overlapping parts along the longer side, for finer detail.
        batch_size: images of one size that are run together.
        cache: keep compiled programs in $JAX_COMPILATION_CACHE_DIR or ~/.cache/dajax: the next run starts faster.
    """
    from dajax.errors import ConfigError, DajaxError, ImageError

    if not images:
        return _usage("name at least one image, folder, pattern or URL")
    if points == "none" and (field_of_view is not None or focal_length is not None or known_points is not None):
        return _usage("--field-of-view, --focal-length and --known-points go with --points")
    if tiles is not None and tiles < 1:
        return _usage(f"--tiles must be at least 1, got {tiles}")
    start = time.perf_counter()
    from dajax.depth_maps.encode import encoded
    from dajax.geometry.cloud import Cloud, read_known_points
    from dajax.images.urls import is_url, redacted
    from dajax.inference.compilation_cache import enable_compilation_cache
    from dajax.inference.estimator import DepthEstimator
    from dajax.inference.image_files import check_output, find_inputs, predict_files

    try:
        found = find_inputs(images, output, allow_urls=True)
        check_output(output, colormap)
        cloud = None
        if points != "none":
            known = None if known_points is None else read_known_points(known_points)
            cloud = Cloud(points, field_of_view, focal_length, known)
        if raw != "none":
            encoded(raw, [[0.0]], kind="relative")  # what is not installed shows before a model is loaded
        if cache:
            enable_compilation_cache()
        estimator = DepthEstimator(model, dtype=dtype, input_size=input_size, style=style, batch_size=batch_size)
        if cloud is not None:
            cloud.check("metric" if estimator.model.config.is_metric else "relative", images=len(found))
    except (ImageError, ConfigError) as error:
        return _usage(str(error))
    except DajaxError as error:
        return _usage(f"--model: {error}{_similar_model(model)}")

    from tqdm import tqdm

    with tqdm(total=len(found), unit="image", disable=None if sys.stderr and len(found) > 1 else True) as bar:
        report = predict_files(
            estimator,
            found,
            output,
            allow_urls=True,
            colormap=colormap,
            side_by_side=side_by_side,
            raw=raw,
            cloud=cloud,
            tiles=tiles,
            model=model,
            on_done=lambda image: bar.update(),
        )
    for image, reason in report.rejects:
        quoted = redacted(image) if is_url(image) else repr(str(image))
        named = reason if reason.startswith(quoted) else f"{quoted}: {reason}"
        print(f"dajax predict: left out {named}", file=sys.stderr)
    done = len(found) - len(report.rejects)
    unit = "metres" if estimator.model.config.is_metric else "inverse depth, bigger is nearer"
    count = len(report.written)
    files = _printable(report.written[0]) if count == 1 else f"{count} files to {_printable(output)}"
    print(
        f"{done} of {len(found)} image{'s' * (len(found) != 1)} in {time.perf_counter() - start:.1f} s, "
        f"{_printable(model)} ({unit}), {estimator.dtype} on {estimator.device}; wrote {files}"
    )
    return 3 if report.rejects else 0


def _printable(name: str | Path) -> str:
    """Return the name, quoted if it has newlines or bytes that a terminal cannot show."""
    return str(name) if str(name).isprintable() else repr(str(name))


def _similar_model(name: str) -> str:
    from difflib import get_close_matches

    from dajax.checkpoints import list_models

    aliases = [row.alias for row in list_models()]
    similar = [] if name in aliases else get_close_matches(name, aliases, 1)
    return f". Did you mean {similar[0]!r}?" if similar else ""


def _usage(message: str) -> int:
    print(f"dajax predict: {message}", file=sys.stderr)
    return 2
