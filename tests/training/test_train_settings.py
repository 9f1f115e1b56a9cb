"""The settings of a run: every problem is named."""

import pytest

from dajax.errors import ConfigError
from dajax.training.train_settings import read_train_settings

GOOD = """
output = "out"
steps = 100
loss = "depth_anything"

[model]
start = "small"

[data]
size = 168

[optimizer]
learning_rate = 1
"""


def written(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text)
    return path


def test_good_settings(tmp_path):
    settings = read_train_settings(written(tmp_path, GOOD))
    assert (settings.output, settings.steps, settings.loss, settings.data.size) == ("out", 100, "depth_anything", 168)
    assert settings.optimizer.learning_rate == 1.0
    assert settings.optimizer.weight_decay == 0.01


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps = 100", "stesp = 100", r"stesp is not a setting; did you mean steps\?; steps is missing"),
        (
            "learning_rate = 1",
            "learnin_rate = 1",
            r"optimizer.learnin_rate is not a setting; did you mean optimizer.learning_rate\?",
        ),
        ("[data]", "[dta]", r"dta is not a setting; did you mean data\?"),
        ("steps = 100", "steps = 100\nqqq = 1", r"qqq is not a setting$"),
        ("steps = 100", 'steps = "100"', "steps must be of type int, got '100'"),
        ("steps = 100", "steps = true", "steps must be of type int, got True"),
        ("steps = 100", "steps = 0", "steps must be at least 1, got 0"),
        ("size = 168", "size = 170", "data.size must be a multiple of 14, got 170"),
        ("learning_rate = 1", "learning_rate = nan", "optimizer.learning_rate must be at least 0, got nan"),
        ('loss = "depth_anything"', 'loss = "l2"', "loss must be one of .*, got 'l2'"),
        ('start = "small"', 'dtype = "float32"', "model.start or model.config is needed"),
        ('start = "small"', "config.patch_size = 14\nencoder_only = true", "model.encoder_only needs model.start"),
        ("steps = 100", "steps = ", "cannot be read as TOML"),
    ],
)
def test_problems_are_named(tmp_path, old, new, message):
    assert GOOD.count(old) == 1
    path = written(tmp_path, GOOD.replace(old, new))
    with pytest.raises(ConfigError, match=message) as caught:
        read_train_settings(path)
    assert str(path) in str(caught.value)


def test_a_table_is_a_table(tmp_path):
    with pytest.raises(ConfigError, match="data must be a table, got 3"):
        read_train_settings(written(tmp_path, 'output = "out"\nsteps = 1\ndata = 3\nmodel.start = "small"\n'))


def test_all_problems_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        read_train_settings(written(tmp_path, "stesp = 1\n[data]\nsiez = 3\n"))
    for problem in ("stesp", "siez", "output is missing", "steps is missing"):
        assert problem in str(caught.value)


def test_no_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_train_settings(tmp_path / "none.toml")
