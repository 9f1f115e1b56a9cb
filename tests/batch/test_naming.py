"""Outputs: below their folder, and never two in one place."""

import unicodedata

import pytest

from dajax.batch.naming import output_names


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        (["a.jpg", "x/b.png"], ["a", "x/b"]),
        (["a.jpg", "a.png"], ["a.jpg", "a.png"]),
        (["x/a.jpg", "y/a.jpg"], ["x/a", "y/a"]),
        (["/data/a.jpg"], ["data/a"]),
        (["gs://bucket/x/a.jpg"], ["bucket/x/a"]),
        (["../../a.jpg", "./b.jpg"], ["_/_/a", "b"]),
        ([".dajax/a.jpg"], ["_.dajax/a"]),
        ([".hidden"], [".hidden"]),
        (["shard.tar/1.jpg"], ["shard.tar/1"]),
        (["a.b.jpg"], ["a.b"]),
    ],
)
def test_names(keys, names):
    assert output_names(keys) == names


def folded(name):
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def test_distinct_on_every_file_system():
    composed, decomposed = "é.jpg", unicodedata.normalize("NFD", "é.jpg")
    keys = ["A.jpg", "a.jpg", "a.JPG", composed, decomposed, "a.jpg.png", "ß.jpg", "SS.jpg", "b.jpg", "b", "b.png"]
    names = output_names(keys)
    assert len({folded(name) for name in names}) == len(keys)
    # A key's name depends on its neighbours, not on their order.
    assert output_names(keys[::-1]) == names[::-1]


def test_a_whole_name_is_not_another_ones_stem():
    names = output_names(["a.jpg", "a.png", "a.jpg.tif"])
    assert len(set(names)) == 3


def test_what_is_taken_stays():
    assert output_names(["a.jpg", "b.jpg"], taken=["a"]) == ["a.jpg", "b"]
    assert output_names(["a.jpg"], taken=["A"]) == ["a.jpg"]
    (name,) = output_names(["a.jpg"], taken=["a", "A.JPG"])
    assert name.startswith("a.jpg-")


def test_long_names_are_cut_and_stay_distinct():
    keys = [f"{'x' * 240}{i}.jpg" for i in range(3)] + ["é" * 120 + ".jpg"]
    names = output_names(keys)
    assert len(set(names)) == 4
    assert all(len(name.encode()) <= 255 - 40 for name in names)


def test_names_that_are_no_unicode():
    assert output_names(["caf\udce9.jpg", "nul\0.jpg"]) == ["caf\udce9", "nul_"]


def test_many():
    keys = [f"{i % 100}/{i}.jpg" for i in range(20_000)]
    assert output_names(keys) == [key[:-4] for key in keys]
