"""`dajax batch`."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import tyro

from dajax.batch.job_settings import BatchSettings
from dajax.cli.messages import say
from dajax.cli.model_options import DEFAULT_MODEL, ModelOptions, make_estimator
from dajax.cli.options import Flag, settings_options, value_of, value_range
from dajax.cli.stopping import stopping
from dajax.depth_maps.encode import Format
from dajax.images.pixels import ValueRange

if TYPE_CHECKING:
    from dajax.batch.engine import Report
    from dajax.batch.job_plan import Plan

# sysexits.h, EX_TEMPFAIL: try again.
INTERRUPTED_STATUS = 75
INTERRUPTED = "interrupted before the job began; the same command starts it"
# A batch that is on the device cannot be called back: after so many seconds the process goes without it.
_GRACE = 8.0

_SETTINGS = settings_options(
    BatchSettings,
    names={"formats": "write", "allow_truncated": "partial"},
    types={"formats": tuple[Format, ...], "value_range": Annotated[ValueRange | None, value_of(value_range)]},
    defaults={"batch_size": 8},
    metavars={
        "formats": "FORMAT...",
        "png_scale": "STEP",
        "colormap": "NAME",
        "shards": "N",
        "batch_size": "N",
        "buckets": "N",
        "workers": "N",
        "value_range": "auto|LO,HI",
        "decode_timeout": "SECONDS",
        "max_rejects": "N",
        "column": "NAME",
        "process_index": "K",
        "process_count": "N",
    },
    unset_hints={
        "batch_size": "8",
        "max_rejects": "any number",
        "value_range": "what the type holds",
        "column": "the only one",
    },
)


def batch(
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")],
    output: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    /,
    model: Annotated[ModelOptions, tyro.conf.arg(help="")],
    job: Annotated[BatchSettings, tyro.conf.arg(constructor=_SETTINGS, help="")],
    dry_run: Flag = False,
    verify: Flag = False,
) -> int:
    """Estimate the depth of very many images; the same command goes on where it was stopped.

    Example: dajax batch images depth --write npy color

    OUT has the depth maps, at the images' own relative paths, and OUT/.dajax a manifest with a row for each image. A
    first Ctrl-C or SIGTERM commits what is finished, a second one ends at once; kill -9 loses nothing either. A job is
    refused if its parameters differ from those that it was begun with.

    Exit status: 0 all done, 1 stopped (a full disk, too many rejects), 2 refused, 3 images were left out or have
    changed since, or outputs are lost (--verify), 75 interrupted. After 1 and 75 the same command goes on.

    Args:
        source: a folder (all images below it), a pattern such as 'images/**/*.jpg', a list.txt of paths, a .csv,
            .tsv or .parquet table, tar shards (WebDataset), or an address such as gs://bucket/images.
        output: the folder or address for the outputs; made if need be.
        model: the model, and how it runs.
        job: how the job is done.
        dry_run: Say what there is to do, without loading a model.
        verify: Compare outputs with the manifest; the next run does again what is lost.
    """
    if verify:
        return _verify(output)
    from dajax.batch.engine import run_batch
    from dajax.batch.job_plan import plan_batch

    if dry_run:
        return _say_plan(plan_batch(source, output, job), output, in_shards=bool(job.shards))
    job.check()
    import jax

    # All devices of this machine; one alone needs no mesh.
    mesh = "local" if jax.local_device_count() > 1 else None
    estimator = make_estimator(model, batch_size=job.batch_size or 8, mesh=mesh)
    with _stopping() as stop:
        report = run_batch(estimator, source, output, job, model=model.model or DEFAULT_MODEL, stop=stop)
    print(f"{_summary(report)}; {estimator.dtype} on {estimator.device}")
    _say_passed_over(report.passed_over)
    if report.interrupted:
        say("batch", "interrupted; the same command goes on")
        return INTERRUPTED_STATUS
    _say_changed(report.changed)
    return 3 if _say_rejects(output) or report.changed else 0


def _summary(report: Report) -> str:
    earlier = f", {report.earlier} by earlier runs" if report.earlier else ""
    noted = f"; notes in the manifest: {report.noted}" if report.noted else ""
    repeated = f"; {report.repeated} entries of the source were repetitions" if report.repeated else ""
    return (
        f"{report.done} images in {report.seconds:.1f} s ({report.done / max(report.seconds, 1e-9):.1f} a second)"
        f"{earlier}, {report.rejected} left out, of {report.items}{noted}{repeated}"
    )


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """Give an event that the first SIGINT or SIGTERM sets; a second one, or a slow end, ends the process."""
    # Nothing that is not committed is worth waiting for.
    timer = threading.Timer(_GRACE, os._exit, (INTERRUPTED_STATUS,))
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


def _say_plan(plan: Plan, output: str, *, in_shards: bool) -> int:
    left = plan.left
    print(f"{plan.items} images, {plan.earlier} finished, {len(left)} to be done")
    _say_passed_over(plan.source.passed_over)
    _say_changed(int(plan.changed.sum()))
    if plan.source.repeated:
        print(f"{plan.source.repeated} entries of the source are repetitions")
    for place in left[:5]:
        where = "" if in_shards else f" -> {output.rstrip('/') + '/' + plan.names[place]!r}"
        print(f"  {plan.source.items[place].key!r}{where}")
    if len(left) > 5:
        print(f"  and {len(left) - 5} more")
    return 0


def _say_passed_over(kinds: Mapping[str, int]) -> None:
    from dajax.images.find import passed_over_text

    if kinds:
        say("batch", f"passed over: {passed_over_text(kinds)}")


def _say_changed(count: int) -> None:
    if count:
        changed = "1 image has changed since its depth map was" if count == 1 else ""
        changed = changed or f"{count} images have changed since their depth maps were"
        say("batch", f"{changed} made; --remake-changed makes {'it' if count == 1 else 'them'} again")


def _verify(output: str) -> int:
    from dajax.batch.verification import verify

    found = verify(output)
    for key, reason in list(found.lost.items())[:20]:
        say("batch", f"{key!r}: {reason}")
    if len(found.lost) > 20:
        say("batch", f"and {len(found.lost) - 20} more")
    print(f"{found.whole} outputs are whole, {len(found.lost)} are lost, {found.rejected} images were left out")
    return 3 if found.lost else 0


def _say_rejects(output: str) -> int:
    """Name the first rejects of the whole job, and return how many there are."""
    from dajax.batch.manifest import read_rejects

    rejected = read_rejects(output)
    for row in rejected[:10]:
        say("batch", f"left out {row.key!r}: {row.reason}")
    if len(rejected) > 10:
        say("batch", f"and {len(rejected) - 10} more; the manifest has them all")
    return len(rejected)
