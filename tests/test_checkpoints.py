import jax
import pytest

import dajax
from dajax.checkpoints import (
    ALIASES,
    EMBEDDED,
    NOT_STATED,
    ORIGINALS,
    alias_of_file,
    checkpoint_of,
    embedded_folder,
    official_stem,
)
from dajax.errors import WeightsError
from dajax.hub import is_hub_id


def test_rows():
    tiny, *rows = dajax.list_models()
    assert tiny is EMBEDDED["tiny"]
    assert {row.alias for row in rows} == {
        "small", "base", "large",
        "small-metric-indoor", "base-metric-indoor", "large-metric-indoor",
        "small-metric-outdoor", "base-metric-outdoor", "large-metric-outdoor",
        "v1-small", "v1-base", "v1-large",
    }  # fmt: skip
    assert len({row.hub_id for row in rows}) == len(rows) == 12
    for row in rows:
        assert ALIASES[row.alias] is row
        assert row.parameters == {"small": 24_785_089, "base": 97_470_785, "large": 335_315_649}[row.size]
        assert is_hub_id(row.hub_id)


def test_what_is_in_the_package():
    tiny = EMBEDDED["tiny"]
    assert (tiny.hub_id, tiny.kind, tiny.licence) == ("", "relative", "Apache-2.0")
    folder = embedded_folder("tiny")
    model, params = dajax.load(folder)
    assert model.config == dajax.DepthAnythingConfig.from_pretrained("tiny")
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == tiny.parameters
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 6e6
    assert embedded_folder("small") is None
    assert embedded_folder(folder) is None


def test_an_alias_is_not_a_folder_beside_it(tmp_path, monkeypatch):
    """As with the aliases of the Hub: a folder of the same name needs a `./`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert dajax.load("tiny")[0].config.backbone_config.hidden_size == 128
    with pytest.raises(WeightsError, match="tiny"):
        dajax.load("./tiny")


def test_hub_ids():
    ids = {row.alias: row.hub_id for row in ALIASES.values()}
    assert ids["small"] == "depth-anything/Depth-Anything-V2-Small-hf"
    assert ids["base-metric-indoor"] == "depth-anything/Depth-Anything-V2-Metric-Indoor-Base-hf"
    assert ids["large-metric-outdoor"] == "depth-anything/Depth-Anything-V2-Metric-Outdoor-Large-hf"
    assert ids["v1-small"] == "LiheYoung/depth-anything-small-hf"


def test_licences():
    licences = {row.alias: row.licence for row in dajax.list_models()}
    assert licences.pop("tiny") == licences.pop("small") == "Apache-2.0"
    assert licences.pop("base") == licences.pop("large") == "CC-BY-NC-4.0"
    assert set(licences.values()) == {NOT_STATED}


@pytest.mark.parametrize(
    ("filename", "alias"),
    [
        ("depth_anything_v2_vits.pth", "small"),
        ("depth_anything_v2_vitb.safetensors", "base"),
        ("depth_anything_v2_metric_hypersim_vitl.pth", "large-metric-indoor"),
        ("depth_anything_v2_metric_vkitti_vits.pth", "small-metric-outdoor"),
        ("depth_anything_v2_metric_hypersim_vitl_fp32.safetensors", "large-metric-indoor"),
        ("Depth_Anything_V2_vitl-FP16.pth", "large"),
        ("depth_anything_vits14.pth", "v1-small"),
        ("depth_anything_v2_vitg.pth", None),
        ("depth_anything_v2_vits_finetuned.pth", None),
        ("depth_anything_metric_depth_indoor.pt", None),
        ("model.safetensors", None),
        ("pytorch_model.bin", None),
        ("", None),
    ],
)
def test_what_a_file_is_by_its_name(filename, alias):
    assert alias_of_file(filename) == alias


def test_every_alias_has_an_official_name():
    for alias in ALIASES:
        assert alias_of_file(f"{official_stem(alias)}.pth") == alias


def test_authors_repositories():
    assert len(ORIGINALS) == 12
    assert {original.alias for original in ORIGINALS.values()} == set(ALIASES)
    assert ORIGINALS["depth-anything/Depth-Anything-V2-Metric-Hypersim-Base"] == (
        "depth_anything_v2_metric_hypersim_vitb.pth",
        "base-metric-indoor",
    )
    for name in ORIGINALS:
        assert is_hub_id(name)
        assert checkpoint_of(name) is ALIASES[ORIGINALS[name].alias]
    assert checkpoint_of("depth-anything/Depth-Anything-V2-Base-hf") is checkpoint_of("base") is ALIASES["base"]
    assert checkpoint_of("someone/something") is None
