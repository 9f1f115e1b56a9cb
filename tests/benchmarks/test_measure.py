"""Peers are compared before they are timed, and timed in turns."""

import jax
import numpy as np
import pytest
from tiny import tiny_config

import dajax
from benchmarks import measure as module
from benchmarks.__main__ import DEFAULT_SET, _chosen
from benchmarks.measure import make_setup, measure, network_flop
from benchmarks.peers import PEERS, Peer, as_array
from dajax.weights.random import random_params


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    config, folder = tiny_config(), tmp_path_factory.mktemp("measure")
    dajax.save(folder / "small", dajax.DepthAnything(config), random_params(config))
    return make_setup("small", (28, 42), 2, "cpu", folder)


@pytest.fixture
def calls(monkeypatch):
    """Peers that record when they are called: one like dajax, one that is far off, one that cannot be built."""
    calls = []
    depth = np.random.default_rng(0).normal(size=(2, 28, 42)).astype(np.float32)

    def calling(name, output):
        return lambda: calls.append(name) or output

    def broken(setup, dtype):
        raise OSError("no such instructions\nand more")

    peers = {
        "dajax": Peer("dajax", lambda setup, dtype: calling("dajax", depth)),
        "near": Peer("near", lambda setup, dtype: calling("near", depth + 1e-5)),
        "far": Peer("far", lambda setup, dtype: calling("far", depth + 0.1)),
        "half": Peer("half", lambda setup, dtype: calling("half", depth + 0.1), "bfloat16"),
        "broken": Peer("broken", broken),
        "absent": Peer("absent", broken, modules=("a_module_that_nobody_has",)),
    }
    monkeypatch.setattr(module, "PEERS", peers)
    monkeypatch.setattr(module, "_PAUSE_S", 0)
    # Among a suite's objects a collection takes a third of a second, and there are three a round.
    monkeypatch.setattr(module.gc, "collect", lambda: 0)
    monkeypatch.setattr(module, "others_s", lambda: 0.0)
    monkeypatch.setattr(module, "_matmul", lambda dtype, platform: ({"dtype": dtype, "flop": 1.0}, lambda: None))
    return calls


def test_peers_are_timed_in_turns_after_the_comparison(setup, calls):
    result = measure(setup, list(module.PEERS), rounds=3, budget_s=60)
    rows = {row["peer"]: row for row in result["rows"]}
    assert calls == ["dajax", "near", "far", "half", *["dajax", "near", "half"] * 4]
    assert {name for name, row in rows.items() if "times_s" in row} == {"dajax", "near", "half"}
    assert all(len(row["times_s"]) == 3 for row in rows.values() if "times_s" in row)
    assert "deviations from dajax's" in rows["far"]["left_out"]
    assert rows["broken"]["left_out"] == "OSError: no such instructions"
    assert rows["absent"]["left_out"] == "a_module_that_nobody_has not installed"
    assert rows["half"]["error"]["max"] == pytest.approx(0.1, rel=0.1)


def test_no_round_begins_after_the_budget_but_seven_are_made(setup, calls):
    result = measure(setup, ["dajax"], rounds=20, budget_s=0)
    assert len(result["rows"][0]["times_s"]) == 7


def test_rounds_that_others_disturb_are_thrown_away(setup, calls, monkeypatch):
    readings = iter([0, 0, 0, 10, 10, 10, 10, 10])  # before and after each round: the second is disturbed
    monkeypatch.setattr(module, "others_s", lambda: next(readings))
    result = measure(setup, ["dajax"], rounds=3, budget_s=60)
    assert result["disturbed"] == {"kept": 0, "thrown_away": 1}
    assert len(result["rows"][0]["times_s"]) == 3
    assert len(calls) == 2 + 4


def test_disturbed_rounds_are_kept_and_told_where_there_are_no_others(setup, calls, monkeypatch):
    readings = iter(range(0, 1000, 10))
    monkeypatch.setattr(module, "others_s", lambda: next(readings))
    result = measure(setup, ["dajax"], rounds=3, budget_s=0)
    assert result["disturbed"] == {"kept": 7, "thrown_away": 0}
    assert len(result["rows"][0]["times_s"]) == 7


def test_dajax_itself_must_run(setup, calls, monkeypatch):
    monkeypatch.setitem(module.PEERS, "dajax", module.PEERS["broken"])
    with pytest.raises(OSError, match="instructions"):
        measure(setup, ["dajax"], rounds=1, budget_s=0)


@pytest.mark.slow
def test_the_timed_call_is_the_network(setup):
    model, params = dajax.load(setup.checkpoint)
    expected = jax.jit(model.apply)({"params": params}, setup.pixels).predicted_depth
    np.testing.assert_array_equal(as_array(PEERS["dajax"].build(setup, "float32")()), expected)
    assert not np.array_equal(setup.pixels[0], setup.pixels[1])


def test_the_jpeg_call_gives_a_map_of_the_images_size(setup):
    assert as_array(PEERS["dajax-jpeg"].build(setup, "float32")()).shape == (28, 42)


def test_keras_hub_is_left_out_where_its_images_do_not_fit(setup, monkeypatch):
    monkeypatch.setattr("benchmarks.peers.find_spec", lambda module: True)
    assert PEERS["keras-hub"].lacking(setup) == "its images are square"


def test_all_heads_are_counted(setup, tmp_path):
    tokens, width, layers, batch = 2 * 3 + 1, 32, 4, 2
    attention = layers * batch * 4 * tokens**2 * width
    linear = layers * batch * 24 * tokens * width**2
    flop = network_flop(setup)
    assert flop > attention + linear
    config = tiny_config()
    from dataclasses import replace

    one_head = replace(config, backbone_config=replace(config.backbone_config, num_attention_heads=1))
    dajax.save(tmp_path / "one" / "small", dajax.DepthAnything(one_head), random_params(one_head))
    other = network_flop(make_setup("small", (28, 42), 2, "cpu", tmp_path / "one"))
    # Two heads have the same products as one, and a second softmax: 10 operations a score at most.
    assert 0 <= flop - other < layers * batch * tokens**2 * 10


@pytest.mark.parametrize("platform", DEFAULT_SET)
def test_the_default_set_names_peers(platform):
    for kind, _, _, _, peers in DEFAULT_SET[platform]:
        names = _chosen(peers, kind, platform)
        assert names[0].startswith("dajax")
        assert len(names) > 1


def test_unknown_peers_and_a_missing_reference_are_refused():
    with pytest.raises(SystemExit, match="no such peers"):
        _chosen("dajax,nobody", "model", "cpu")
    with pytest.raises(SystemExit, match="compared with dajax"):
        _chosen("transformers", "model", "cpu")
