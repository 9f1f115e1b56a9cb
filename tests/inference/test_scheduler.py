"""Batches and their order, with a function in the network's place."""

import itertools

import jax
import numpy as np
import pytest

from dajax.errors import JobRefusedError
from dajax.inference.scheduler import BatchScheduler
from dajax.preprocessing.buckets import ProcessedImage


def image(number, size=(14, 14)):
    """A processed image whose pixels all are its number."""
    return ProcessedImage(np.full((*size, 3), number, np.float32), size, size)


class Device:
    """Runs batches: the result of an image is twice its number. Has memory for `most` rows."""

    def __init__(self, most=1000):
        self.most, self.batches = most, []

    def __call__(self, pixels):
        self.batches.append((pixels.shape[1:3], pixels[:, 0, 0, 0].tolist()))
        if len(pixels) > self.most:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return 2 * pixels[..., 0]


class Later:
    """A result that the device is still computing, and whose failure shows only when it is read."""

    def __init__(self, result, fails):
        self.result, self.fails = result, fails

    def __array__(self, dtype=None, copy=None):
        if self.fails:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return self.result


def value(image, row):
    return float(row[0, 0])


def run(started, images, **options):
    scheduler = BatchScheduler(started, value, **options)
    found = []
    for one in images:
        scheduler.add(one)
        found += scheduler.results()
    scheduler.flush()
    return found + list(scheduler.results())


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_results_come_in_the_order_of_the_images(batch_size):
    sizes = [(14, 14), (14, 28), (14, 14), (28, 14), (14, 28)] * 5
    images = [image(number, size) for number, size in enumerate(sizes)]
    device = Device()
    assert run(device, images, batch_size=batch_size) == [2.0 * number for number in range(25)]
    for size, numbers in device.batches:  # one size, in order, filled up with zeros behind them
        inside = [number for number in numbers if number]
        assert inside == sorted(inside)
        assert all(sizes[int(number)] == size for number in inside)


def test_an_image_of_a_rare_size_waits_for_four_batches():
    device = Device()
    images = [image(1, (28, 28)), *(image(number) for number in range(2, 40))]
    scheduler = BatchScheduler(device, value, batch_size=3)
    started = []
    for one in images:
        scheduler.add(one)
        started.append(((28, 28), [1.0]) in device.batches)
    assert started.index(True) == 4 * 3


def test_one_batch_stays_on_the_device():
    """A result is not read before the next batch was started."""
    read = []

    class Watched(Later):
        def __array__(self, dtype=None, copy=None):
            read.append(int(self.result[0, 0, 0]))
            return self.result

    device = Device()
    scheduler = BatchScheduler(lambda pixels: Watched(device(pixels), False), value, batch_size=1)
    for number in range(1, 4):
        scheduler.add(image(number))
        assert read == [2 * n for n in range(1, number)]
    scheduler.flush()
    assert read == [2, 4, 6]


def test_endless_images_are_not_read_ahead_for_long():
    device = Device()
    scheduler = BatchScheduler(device, value, batch_size=4)
    found = []
    for number in itertools.count():
        scheduler.add(image(number, (14, 14 * (1 + number % 2))))
        found += scheduler.results()
        assert number - len(found) <= 2 * 4 + 4 * 4
        if number == 400:
            break
    assert found == [2.0 * number for number in range(len(found))]


@pytest.mark.parametrize(
    ("rows", "devices", "counts"),
    [
        ("fewest", 1, {1: [1], 2: [2], 3: [4], 4: [4], 5: [6], 6: [6], 7: [6, 1]}),
        ("fewest", 2, {1: [2], 3: [4], 5: [6], 7: [6, 2]}),
        ("fewest", 4, {1: [4], 5: [8]}),
        ("whole", 1, {1: [6], 6: [6], 7: [6, 6]}),
        ("whole", 4, {1: [8], 5: [8]}),
        ("single", 1, {1: [1], 3: [1, 1, 1], 7: [1] * 7}),
        ("single", 2, {1: [2], 3: [2, 2], 7: [2] * 4}),
        ("first", 2, {1: [2], 3: [2, 2, 2]}),
    ],
)
def test_rows_of_a_batch(rows, devices, counts):
    for count, expected in counts.items():
        device = Device()
        found = run(device, map(image, range(1, count + 1)), batch_size=6, devices=devices, rows=rows)
        assert found == [2.0 * number for number in range(1, count + 1)]
        assert [len(numbers) for _, numbers in device.batches] == expected, count


@pytest.mark.parametrize("devices", [1, 2, 3, 8])
@pytest.mark.parametrize("batch_size", [1, 2, 6, 8, 9, 64])
def test_padded_batches_are_few_and_fit(devices, batch_size):
    padded = {}
    for count in range(1, batch_size + 1):
        device = Device()
        run(device, map(image, range(count)), batch_size=batch_size, devices=devices)
        ((_, numbers),) = device.batches
        padded[count] = len(numbers)
    assert all(count <= rows < batch_size + devices and rows % devices == 0 for count, rows in padded.items())
    assert len(set(padded.values())) <= 1 + np.ceil(np.log2(batch_size))


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(("devices", "most"), [(1, 4), (1, 3), (1, 1), (2, 2), (2, 5)])
def test_batches_are_halved_where_memory_is_short(devices, most, late):
    device = Device(1000 if late else most)

    def starting(pixels):
        return Later(device(pixels), len(pixels) > most)

    told, images = [], [image(number, (14, 14 * (1 + number % 2))) for number in range(1, 40)]
    scheduler = BatchScheduler(
        starting if late else device, value, batch_size=8, devices=devices, on_smaller_batch=told.append
    )
    found = []
    for one in images:
        scheduler.add(one)
        found += scheduler.results()
    scheduler.flush()
    assert found + list(scheduler.results()) == [2.0 * number for number in range(1, 40)]
    assert told == [size for size in (4, 2, 1) if size * 2 > most and size >= devices]
    assert scheduler.batch_size == told[-1]


def test_a_smaller_batch_is_said():
    with pytest.warns(UserWarning, match="out of device memory: batches of 2 from here on"):
        run(Device(2), map(image, range(4)), batch_size=4)


def test_an_image_that_does_not_fit_alone_is_refused():
    refusal = "an image of 14x28 does not fit into the memory of 2 x Chip, even alone"
    with pytest.raises(JobRefusedError, match=refusal):
        run(
            Device(1),
            [image(1, (14, 28))],
            batch_size=8,
            devices=2,
            device="2 x Chip",
            on_smaller_batch=lambda size: None,
        )


def test_other_errors_are_raised_as_they_are():
    def broken(pixels):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        run(broken, [image(1)], batch_size=1)


def test_finish_gets_the_image_of_its_row():
    seen = []

    def finish(one, row):
        seen.append((float(one.pixels[0, 0, 0]), float(row[0, 0])))

    scheduler = BatchScheduler(Device(), finish, batch_size=4)
    for number in range(6):
        scheduler.add(image(number))
    scheduler.flush()
    assert seen == [(float(number), 2.0 * number) for number in range(6)]
