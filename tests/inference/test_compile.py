"""Compilation ahead of time: afterwards, no image waits for a program."""

import threading

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from seeded import make_image
from tiny import tiny_config

import dajax
from dajax import limits
from dajax.errors import ConfigError
from dajax.inference.scheduler import possible_rows
from dajax.preprocessing.processor import DepthImageProcessor
from dajax.weights.random import random_params

COMPILED = "/jax/core/compile/backend_compile_duration"
_seen = []
jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: _seen.append(event))


@pytest.fixture
def compilations():
    """The events of jax since the test began; `.count(COMPILED)` is how many programs were compiled or read."""
    _seen.clear()
    return _seen


def make_estimator(**options):
    config = tiny_config()
    pair = (dajax.DepthAnything(config), random_params(config, 0))
    return dajax.DepthEstimator(pair, processor=DepthImageProcessor(input_size=28), **options)


@pytest.mark.parametrize(
    ("batch_size", "devices", "rows", "expected"),
    [
        (1, 1, "fewest", [1]),
        (6, 1, "fewest", [1, 2, 4, 6]),
        (8, 2, "fewest", [2, 4, 8]),
        (5, 2, "whole", [6]),
        (5, 2, "single", [2]),
        (5, 2, "first", [2]),
    ],
)
def test_the_rows_that_batches_may_have(batch_size, devices, rows, expected):
    assert possible_rows(batch_size, devices, rows) == expected


@pytest.mark.parametrize("options", [{}, {"mesh": "local"}, {"mesh": "local", "parallel": "pmap"}])
@pytest.mark.parametrize("whole_batches", [False, True])
def test_nothing_is_compiled_later(compilations, options, whole_batches):
    devices = jax.local_device_count() if options else 1
    batch_size = 2 * devices
    estimator = make_estimator(batch_size=batch_size, **options)
    sizes = [(60, 80), (61, 80)]  # both are processed at one size
    images = [make_image(*sizes[i % 2]) for i in range(batch_size + 1)]
    programs = estimator.compile(sizes, whole_batches=whole_batches, progress=False)
    shapes = [program.shape for program in programs]
    assert shapes == [(devices * each, 28, 42, 3) for each in ((1,) if whole_batches else (2, 1))]
    # Where the network runs on zeros, parts of its result are cut out by small programs.
    assert compilations.count(COMPILED) == len(shapes) or "parallel" in options
    assert all(program.seconds > 0 for program in programs)
    compilations.clear()
    depths = list(estimator.stream(images, whole_batches=whole_batches))
    assert compilations.count(COMPILED) == 0
    assert [depth.shape for depth in depths] == [image.shape[:2] for image in images]
    again = estimator.compile(sizes, whole_batches=whole_batches, progress=False)
    assert [(program.shape, program.seconds) for program in again] == [(shape, 0.0) for shape in shapes]


def test_all_buckets(compilations):
    estimator = make_estimator(batch_size=1, buckets=2)
    programs = estimator.compile(progress=False)
    assert len(programs) == compilations.count(COMPILED) == 2
    compilations.clear()
    estimator([make_image(40, 80), make_image(80, 40)])
    assert compilations.count(COMPILED) == 0


def test_depth_is_the_same_as_without():
    image = make_image(60, 80)
    estimator = make_estimator()
    estimator.compile([(60, 80)], progress=False)
    np.testing.assert_array_equal(estimator(image), make_estimator()(image))


def test_a_thread_waits_for_the_program_that_another_compiles(compilations):
    estimator = make_estimator()
    started = threading.Event()
    lower = estimator._apply.lower

    class Announced:
        def lower(self, *arguments):
            started.set()
            return lower(*arguments)

        def __call__(self, *arguments):
            return apply(*arguments)

    apply, estimator._apply = estimator._apply, Announced()
    thread = threading.Thread(target=estimator.compile, args=([(60, 80)],), kwargs={"progress": False})
    thread.start()
    assert started.wait(60)
    estimator(make_image(60, 80))
    thread.join()
    assert compilations.count(COMPILED) == 1


def test_programs_of_the_cache_on_disk_are_told_from_others(tmp_path):
    options = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {option: getattr(jax.config, option) for option in options}
    try:
        dajax.enable_compilation_cache(tmp_path)
        found = []
        for _ in range(2):
            found += make_estimator().compile([(60, 80)], progress=False)
            jax.clear_caches()
        assert [program.from_cache for program in found] == [False, True]
    finally:
        for option, value in before.items():
            jax.config.update(option, value)
        compilation_cache.reset_cache()


def test_a_bar_and_an_early_end(capsys, monkeypatch):
    monkeypatch.setattr("dajax.progress.LINE_EVERY_S", 0.0)
    estimator = make_estimator()
    stop = threading.Event()
    stop.set()
    assert estimator.compile([(60, 80)], stop=stop) == []
    assert len(estimator.compile([(60, 80)])) == 1
    assert "dajax: 1 of 1 programs" in capsys.readouterr().err


@pytest.mark.parametrize("sizes", [518, "518", [518], [(518,)], [(518, 0)], [(518, 518.0)], [(True, 5)]])
def test_what_is_no_size_is_refused(sizes):
    with pytest.raises(ConfigError, match="sizes must be a list of"):
        make_estimator().compile(sizes)


def test_neither_sizes_nor_buckets():
    with pytest.raises(ConfigError, match="neither sizes nor buckets"):
        make_estimator().compile()


def test_more_programs_than_an_estimator_keeps(monkeypatch):
    monkeypatch.setattr(limits, "MAX_PROGRAMS", 1)
    with pytest.raises(ConfigError, match="need 2 programs, and an estimator keeps 1"):
        make_estimator().compile([(60, 80), (80, 60)])
