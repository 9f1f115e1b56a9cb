"""`dajax batch`."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

import tyro

from dajax.cli.stopping import stopping

# sysexits.h, EX_TEMPFAIL: try again.
INTERRUPTED = 75
# A batch that is on the device cannot be called back: after so many seconds the process goes without it.
_GRACE = 8.0

Form = Literal["color", "npy", "npz", "png16", "tiff", "pfm", "exr"]


def batch(
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")],
    output: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    /,
    model: Annotated[str, tyro.conf.arg(aliases=["-m"], metavar="NAME")] = "small",
    write: Annotated[tuple[Form, ...], tyro.conf.arg(metavar="FORMAT...")] = ("npy",),
    values: Literal["float32", "float16"] = "float32",
    size: Literal["source", "model"] = "source",
    colormap: Annotated[str, tyro.conf.arg(metavar="NAME")] = "Spectral_r",
    shards: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: files, no shards)")] = None,
    shard_format: Literal["tar", "parquet"] = "tar",
    column: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: the only one)")] = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    input_size: Annotated[
        int | None, tyro.conf.arg(metavar="PIXELS", help_behavior_hint="(default: the checkpoint's, 518)")
    ] = None,
    style: Annotated[
        Literal["huggingface", "official"] | None,
        tyro.conf.arg(metavar="{huggingface,official}", help_behavior_hint="(default: the checkpoint's, huggingface)"),
    ] = None,
    batch_size: Annotated[int, tyro.conf.arg(metavar="N")] = 8,
    buckets: Annotated[
        int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: sizes as they are)")
    ] = None,
    policy: Literal["resize", "pad"] = "resize",
    workers: Annotated[
        int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: one a core, 16 at most)")
    ] = None,
    decode_timeout: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = 60.0,
    max_rejects: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: any number)")] = None,
    retry_rejects: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    process_index: Annotated[int, tyro.conf.arg(metavar="K")] = 0,
    process_count: Annotated[int, tyro.conf.arg(metavar="N")] = 1,
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    verify: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    cache: bool = True,
) -> int:
    """Estimate the depth of very many images; the same command goes on where it was stopped, however that was.

    OUT has the maps, at the images' own relative paths, and OUT/.dajax a manifest with a row for each image: done,
    with the SHA-256 of its files, or rejected, with the reason. progress.json there says how far it is. A first Ctrl-C
    or SIGTERM commits what is finished and ends within ten seconds, a second one ends at once; kill -9 loses nothing
    either. A job is refused if its parameters differ from those that it was begun with.

    Exit status: 0 all done, 1 stopped (a full disk, too many rejects: the same command goes on), 2 refused, 3 some
    images were left out, 75 interrupted: the same command goes on. With --verify: 0 all whole, 3 some are lost.

    Args:
        source: a folder (all images below it), a pattern such as 'images/**/*.jpg', a list.txt with a path in each
            line, a table.csv or .parquet with --column, tar shards (WebDataset), or an address such as gs://bucket/images.
        output: folder or address for the outputs; made if need be.
        model: an alias (see `dajax models`), a Hub id, a checkpoint folder, or a .safetensors, .pth or .bin file.
        write: what is written for each image: npy, npz (with unit and model), png16 (16-bit PNG with its scale),
            tiff, pfm and exr (float32), color (for people).
        values: of npy and npz.
        size: maps in the images' sizes, or in that of the network.
        colormap: Spectral_r, inferno, turbo, gray, ...; with matplotlib installed any of its names.
        shards: put so many images into one file.
        shard_format: WebDataset tar files, or Parquet.
        column: of a CSV or Parquet source, the column that has the paths.
        dtype: what to compute in.
        input_size: about how many pixels a side is scaled to before the network.
        style: sizes and resampling as Transformers does (huggingface) or as the authors' code does (official).
        batch_size: images of one size that are run together, on all devices of the machine.
        buckets: process images at so many sizes at most, for few compilations.
        policy: stretch images to their bucket, or keep their aspect ratio and pad.
        workers: processes that read images.
        decode_timeout: what reading one image may take.
        max_rejects: stop when this run had to leave out more images than this.
        retry_rejects: try again what an earlier run left out (not with --shards).
        process_index: which of N processes this is, counted from 0 (0 to N-1). Each does its part of the images; they
            run at the same time, on this machine or on others, and write into the same OUT.
        process_count: how many processes do the job together; with 1, this one does all of it.
        dry_run: say what there is to do, without loading a model.
        verify: compare what is written with the manifest; what is missing or has changed is done by the next run.
        cache: keep compiled programs in $JAX_COMPILATION_CACHE_DIR or ~/.cache/dajax: the next run starts faster.
    """
    from dajax.errors import DajaxError, HubError, JobError, JobRefusedError

    try:
        if verify:
            return _verify(output)
        from dajax.batch.engine import run_batch
        from dajax.batch.job_plan import plan_batch
        from dajax.batch.job_settings import BatchSettings

        settings = BatchSettings(
            formats=tuple(write),
            values=values,
            size=size,
            colormap=colormap,
            shards=shards,
            shard_format=shard_format,
            batch_size=batch_size,
            buckets=buckets,
            policy=policy,
            workers=workers,
            decode_timeout=decode_timeout,
            max_rejects=max_rejects,
            retry_rejects=retry_rejects,
            column=column,
            process_index=process_index,
            process_count=process_count,
        )
        if dry_run:
            return _say_plan(plan_batch(source, output, settings), output, in_shards=bool(shards))
        settings.check()
        from dajax.inference.compilation_cache import enable_compilation_cache
        from dajax.inference.estimator import DepthEstimator

        if cache:
            enable_compilation_cache()
        import jax

        # All of this machine's; one alone needs no mesh.
        mesh = "local" if jax.local_device_count() > 1 else None
        estimator = DepthEstimator(
            model, dtype=dtype, input_size=input_size, style=style, batch_size=batch_size, mesh=mesh
        )
        with _stopping() as stop:
            report = run_batch(estimator, source, output, settings, model=model, stop=stop)
    except DajaxError as error:
        print(f"dajax batch: {error}", file=sys.stderr)
        may_go_on = isinstance(error, JobError | HubError) and not isinstance(error, JobRefusedError)
        return 1 if may_go_on else 2
    earlier = f", {report.earlier} by earlier runs" if report.earlier else ""
    repeated = f"; {report.repeated} entries of the source were repetitions" if report.repeated else ""
    print(
        f"{report.done} images in {report.seconds:.1f} s ({report.done / max(report.seconds, 1e-9):.1f} a second)"
        f"{earlier}, {report.rejected} left out, of {report.items}{repeated}; {estimator.dtype} on {estimator.device}"
    )
    if report.interrupted:
        print("dajax batch: interrupted; the same command goes on", file=sys.stderr)
        return INTERRUPTED
    return 3 if _say_rejects(output) else 0


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """Give an event that the first SIGINT or SIGTERM sets; a second one, or a slow end, ends the process."""
    # Nothing that is not committed is worth waiting for.
    timer = threading.Timer(_GRACE, os._exit, (INTERRUPTED,))
    timer.daemon = True
    with stopping(
        "dajax batch: stopping; once more to stop at once",
        on_first=timer.start,
        on_second=lambda number: os._exit(128 + number),
    ) as stop:
        try:
            yield stop
        finally:
            timer.cancel()


def _say_plan(plan: object, output: str, *, in_shards: bool) -> int:
    from dajax.batch.job_plan import Plan

    assert isinstance(plan, Plan)
    left = plan.left
    print(f"{plan.items} images, {plan.earlier} finished, {len(left)} to be done")
    if plan.source.repeated:
        print(f"{plan.source.repeated} entries of the source are repetitions")
    for place in left[:5]:
        where = "" if in_shards else f" -> {output.rstrip('/') + '/' + plan.names[place]!r}"
        print(f"  {plan.source.items[place].key!r}{where}")
    if len(left) > 5:
        print(f"  and {len(left) - 5} more")
    return 0


def _verify(output: str) -> int:
    from dajax.batch.verification import verify

    found = verify(output)
    for key, reason in list(found.lost.items())[:20]:
        print(f"dajax batch: {key!r}: {reason}", file=sys.stderr)
    if len(found.lost) > 20:
        print(f"dajax batch: and {len(found.lost) - 20} more", file=sys.stderr)
    print(f"{found.whole} outputs are whole, {len(found.lost)} are lost, {found.rejected} images were left out")
    return 3 if found.lost else 0


def _say_rejects(output: str) -> int:
    """Name the first rejects of the whole job, and return how many there are."""
    from dajax.batch.manifest import read_rejects

    rejected = read_rejects(output)
    for row in rejected[:10]:
        print(f"dajax batch: left out {row.key!r}: {row.reason}", file=sys.stderr)
    if len(rejected) > 10:
        print(f"dajax batch: and {len(rejected) - 10} more; the manifest has them all", file=sys.stderr)
    return len(rejected)
