"""Everything that takes a name, with every alias, against a Hub on loopback."""

import os
import pty
import shutil
import subprocess
import sys
import termios
from pathlib import Path

import jax
import numpy as np
import pytest
from huggingface_hub import snapshot_download

import dajax
from dajax.checkpoints import ALIASES
from dajax.config import DepthAnythingConfig
from dajax.hub import locate

# The licences of some weights are warned about.
pytestmark = pytest.mark.filterwarnings("ignore::dajax.errors.LicenceWarning")
IMAGE = Path(dajax.__file__).parent / "assets" / "scene.jpg"
MAX_DEPTHS = {"relative": None, "v1 relative": None, "metric indoor": 20, "metric outdoor": 80}


def gets(hub):
    return [request.path.rpartition("/")[2] for request in hub.asked(method="GET")]


@pytest.mark.parametrize("alias", ALIASES)
def test_every_alias_loads_what_is_under_its_hub_id(released_hub, released, alias):
    row = ALIASES[alias]
    model, params = dajax.load(alias)
    folder = released[row.hub_id]
    assert model.config == DepthAnythingConfig.from_pretrained(folder)
    assert (model.config.max_depth if model.config.is_metric else None) == MAX_DEPTHS[row.kind]
    assert (model.config.backbone_config.out_indices == (3, 4, 5, 6)) == (row.kind == "v1 relative")
    jax.tree.map(np.testing.assert_array_equal, params, dajax.load(folder)[1])
    assert gets(released_hub) == ["config.json", "model.safetensors"]
    assert {request.headers.get("authorization") for request in released_hub.requests} == {None}


def test_nothing_is_downloaded_twice(released_hub):
    dajax.load("small")
    before = len(gets(released_hub))
    dajax.load(ALIASES["small"].hub_id)
    dajax.load("small", local_files_only=True)
    assert len(gets(released_hub)) == before


def test_loads_without_the_hub_once_it_is_cached(released_hub):
    expected = dajax.load("base-metric-indoor")[1]
    released_hub.close()
    jax.tree.map(np.testing.assert_array_equal, dajax.load("base-metric-indoor")[1], expected)


def test_a_hub_id_of_somebody(released_hub, released, tmp_path):
    folder = shutil.copytree(released[ALIASES["large-metric-outdoor"].hub_id], tmp_path / "mine")
    (folder / "preprocessor_config.json").write_text('{"size": 266, "ensure_multiple_of": 14}')
    commit = released_hub.push("someone/mine", folder, "v2")
    model, _ = dajax.load("someone/mine", revision="v2")
    assert DepthAnythingConfig.from_pretrained("someone/mine", revision="v2") == model.config
    assert model.config.max_depth == 80
    processor = dajax.DepthImageProcessor.from_pretrained("someone/mine", revision=commit)
    assert processor.size == {"height": 266, "width": 266}
    assert gets(released_hub) == ["config.json", "model.safetensors", "preprocessor_config.json"]


def test_shards(released_hub, released, tmp_path):
    folder = shutil.copytree(released[ALIASES["small"].hub_id], tmp_path / "sharded")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "model-00001-of-00001.safetensors"}}')
    released_hub.push("someone/sharded", folder)
    expected = dajax.load("small")[1]
    released_hub.requests.clear()
    for _ in range(2):
        jax.tree.map(np.testing.assert_array_equal, dajax.load("someone/sharded")[1], expected)
    assert gets(released_hub) == [
        "config.json",
        "model.safetensors.index.json",
        "model-00001-of-00001.safetensors",
        "preprocessor_config.json",
    ]


def test_pipeline(released_hub, released):
    pipe = dajax.pipeline("depth-estimation", model="small", input_size=70)
    expected = dajax.load(released[ALIASES["small"].hub_id])[1]
    jax.tree.map(np.testing.assert_array_equal, pipe.estimator.params, expected)
    assert np.isfinite(pipe(str(IMAGE))["predicted_depth"]).all()
    assert gets(released_hub) == ["config.json", "model.safetensors"]


def test_options_reach_the_hub(released_hub, tmp_path):
    dajax.DepthEstimator("small", token="hf_member", cache_dir=tmp_path / "mine")
    assert {request.headers.get("authorization") for request in released_hub.asked(host="hub")} == {"Bearer hf_member"}
    assert (tmp_path / "mine").exists()
    assert not (tmp_path / "huggingface").exists()


def test_the_hub_on_loopback_tells_the_client_its_files(released_hub, released):
    name = ALIASES["v1-large"].hub_id
    folder = Path(snapshot_download(name, allow_patterns="*.json"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in released[name].glob("*.json")
    }


# --- on a terminal ----------------------------------------------------------------------------------------------------


def on_a_terminal(command, environment, cwd) -> tuple[int, str]:
    """Run a process whose output is a terminal; return its status and what the terminal showed."""
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, 120))
    process = subprocess.Popen(command, env=environment, cwd=cwd, stdout=follower, stderr=follower)
    os.close(follower)
    shown = b""
    while True:
        try:
            shown += (chunk := os.read(leader, 65536))
        except OSError:  # Linux ends a terminal whose processes are gone with EIO, others with no bytes
            break
        if not chunk:
            break
    os.close(leader)
    return process.wait(), shown.decode()


def test_predict_by_alias_shows_the_download(released_hub, tmp_path):
    shutil.copy(IMAGE, tmp_path / "room.jpg")
    command = [sys.executable, "-m", "dajax", "predict", "room.jpg", "--model", "small", "--input-size", "70"]
    status, shown = on_a_terminal(command, released_hub.environment(tmp_path), tmp_path)
    assert status == 0, shown
    assert "1 of 1 image in" in shown
    assert (tmp_path / "room_depth.png").exists()
    for name in ("config.json", "model.safetensors"):
        assert any(name in line and "100%" in line for line in shown.splitlines()), shown
    assert gets(released_hub) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("switch", [None, "HF_HUB_DISABLE_PROGRESS_BARS"])
def test_progress_bars_can_be_switched_off(released_hub, tmp_path, switch):
    command = [sys.executable, "-c", "from dajax.hub import locate; print(locate('small', 'model.safetensors'))"]
    environment = released_hub.environment(tmp_path, **({switch: 1} if switch else {}))
    status, shown = on_a_terminal(command, environment, tmp_path)
    assert status == 0, shown
    assert ("100%" in shown) == (switch is None)


def test_no_progress_bar_where_nobody_looks(released_hub, capfd):
    assert locate("small", "model.safetensors").exists()
    assert capfd.readouterr().err == ""
