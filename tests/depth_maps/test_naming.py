"""Outputs: below their folder, and never two in one place."""

import os
import unicodedata
from pathlib import Path

import pytest

from dajax.depth_maps.naming import image_keys, output_names, possible_names, url_as_path


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


def test_what_earlier_runs_wrote_stays():
    assert output_names(["a.jpg", "b.jpg"], {"a.png": "a"}) == ["a.jpg", "b"]
    assert output_names(["a.jpg"], {"x.jpg": "A"}) == ["a.jpg"]
    (name,) = output_names(["a.jpg"], {"x.jpg": "a", "y.jpg": "A.JPG"})
    assert name.startswith("a.jpg-")
    # An image of an earlier run keeps its name, and a new one does not take it.
    assert output_names(["a.png", "a.jpg", "b.jpg"], {"a.jpg": "a", "b.jpg": "other"}) == ["a.png", "a", "other"]


def test_a_name_is_one_of_the_possible_ones():
    keys = ["a.jpg", "x/b.jpg", "x/b.png", "X/B.JPG", "x" * 300 + ".jpg", "../c.jpg"]
    for key, name in zip(keys, output_names(keys), strict=True):
        assert name in possible_names(key)
    assert possible_names("x/a.jpg")[:2] == ("x/a", "x/a.jpg")
    assert possible_names("x/a.jpg")[2].startswith("x/a.jpg-")


def test_long_names_are_cut_and_stay_distinct():
    keys = [f"{'x' * 240}{i}.jpg" for i in range(3)] + ["é" * 120 + ".jpg"]
    names = output_names(keys)
    assert len(set(names)) == 4
    assert all(len(name.encode()) <= 255 - 40 for name in names)


def test_a_cut_name_of_an_earlier_run_is_not_given_again():
    first, second = "x" * 240 + ".jpg", "x" * 240 + ".png"
    earlier = dict(zip([first], output_names([first]), strict=True))
    (name,) = output_names([second], earlier)
    assert name not in earlier.values()


def test_names_that_are_no_unicode():
    assert output_names(["caf\udce9.jpg", "nul\0.jpg"]) == ["caf\udce9", "nul_"]


def test_many():
    keys = [f"{i % 100}/{i}.jpg" for i in range(20_000)]
    assert output_names(keys) == [key[:-4] for key in keys]


# --- keys of files and URLs ----------------------------------------------------------------------------------------


def keys(*paths_and_roots):
    return image_keys([Path(path) for path, _ in paths_and_roots], [Path(root) for _, root in paths_and_roots])


def test_a_key_is_the_path_below_what_the_user_named(tmp_path, monkeypatch):
    assert keys() == []
    assert keys(("in/a.jpg", "in"), ("in/x/y/b.jpg", "in")) == ["a.jpg", "x/y/b.jpg"]
    assert keys(("in/x/a.jpg", "in/x"), ("other/b.jpg", "other")) == ["a.jpg", "b.jpg"]
    monkeypatch.chdir(tmp_path)
    assert keys(("a.jpg", "."), (tmp_path / "x" / "b.jpg", "")) == ["a.jpg", "x/b.jpg"]


def test_where_keys_meet_they_begin_at_the_common_folder():
    assert keys(("p/a/x.jpg", "p/a"), ("p/b/x.jpg", "p/b"), ("p/q/a/x.jpg", "p/q")) == [
        "a/x.jpg", "b/x.jpg", "q/a/x.jpg",
    ]  # fmt: skip


def test_the_same_path_twice_has_two_keys():
    found = keys(("a.jpg", "."), ("a.jpg", "."), ("a.jpg", "."), ("a.jpg+2", "."))
    assert len(set(found)) == 4
    assert len(set(output_names(found))) == 4


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("https://host/x/room.jpg?key=1#end", "host/room.jpg"),
        ("https://user:pass@Host:8/room", "host/room"),
        ("https://host", "host/image"),
        ("https://host/..", "host/image"),
        ("https://host/.bashrc", "host/bashrc"),
        ("https://host/a%2F..%2F..%2Fetc%2Fpasswd", "host/passwd"),
        ("https://host/a%5C..%5Cb.jpg", "host/b.jpg"),
        ("https://host/a%00%0A%1B[2Jb%3A%22c.jpg", "host/a___[2Jb__c.jpg"),
        ("https://../a.jpg", "host/a.jpg"),
        ("https://[::1]/a.jpg", "__1/a.jpg"),
        ("https://[1:2/a.jpg", "host/image"),
    ],
)
def test_a_url_is_named_after_the_end_of_its_path(url, path):
    assert url_as_path(url).as_posix() == path
    assert os.pardir not in url_as_path(url).parts
