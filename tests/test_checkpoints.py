import dajax
from dajax.checkpoints import ALIASES, NOT_STATED
from dajax.hub import is_hub_id


def test_rows():
    rows = dajax.list_models()
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


def test_hub_ids():
    ids = {row.alias: row.hub_id for row in dajax.list_models()}
    assert ids["small"] == "depth-anything/Depth-Anything-V2-Small-hf"
    assert ids["base-metric-indoor"] == "depth-anything/Depth-Anything-V2-Metric-Indoor-Base-hf"
    assert ids["large-metric-outdoor"] == "depth-anything/Depth-Anything-V2-Metric-Outdoor-Large-hf"
    assert ids["v1-small"] == "LiheYoung/depth-anything-small-hf"


def test_licences():
    licences = {row.alias: row.licence for row in dajax.list_models()}
    assert licences.pop("small") == "Apache-2.0"
    assert licences.pop("base") == licences.pop("large") == "CC-BY-NC-4.0"
    assert set(licences.values()) == {NOT_STATED}
