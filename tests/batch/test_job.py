"""The job file: a job goes on with the same parameters, job format and numerics only."""

import json
import re

import pytest
from batch_jobs import PlainEstimator, do, make_images, outputs, rows

from dajax.batch.job import JOB, JOB_FORMAT, claim, keys_digest, weights_digest
from dajax.batch.job_settings import BatchSettings
from dajax.batch.local_storage import LocalStorage
from dajax.errors import ConfigError, JobRefusedError
from dajax.numerics import NUMERICS


@pytest.fixture
def job(tmp_path):
    source = make_images(tmp_path / "images", good=2, bad=0)
    do(source, tmp_path / "out")
    return source, tmp_path / "out"


def change(output, **changes):
    content = json.loads((output / JOB).read_text())
    for name, value in changes.items():
        if value is None:
            del content[name]
        else:
            content[name] = value
    (output / JOB).write_text(json.dumps(content))


def test_the_job_file_says_what_the_outputs_are(job):
    content = json.loads((job[1] / JOB).read_text())
    assert content["format"] == JOB_FORMAT
    assert content["parameters"]["numerics"] == NUMERICS
    assert content["dajax"]


def test_another_version_of_dajax_may_go_on_where_nothing_has_changed(job):
    change(job[1], dajax="0.0.1")
    assert do(*job).earlier == 2


def test_a_job_from_before_a_parameter_was_there_goes_on(job):
    content = json.loads((job[1] / JOB).read_text())
    assert content["parameters"].pop("png_scale") is None
    assert content["parameters"].pop("exr_channels") is None
    (job[1] / JOB).write_text(json.dumps(content))
    assert do(*job).earlier == 2


def test_a_job_whose_exr_files_have_other_channels_is_refused(tmp_path):
    source, output = make_images(tmp_path / "images", good=1, bad=0), tmp_path / "out"
    do(source, output, formats=("exr",))
    content = json.loads((output / JOB).read_text())
    del content["parameters"]["exr_channels"]
    (output / JOB).write_text(json.dumps(content))
    with pytest.raises(JobRefusedError, match='exr_channels was null and is "RGBZ"'):
        do(source, output, formats=("exr",))


@pytest.mark.parametrize(
    ("form", "said"), [(None, "no format number"), (JOB_FORMAT + 1, f"number {JOB_FORMAT + 1}"), ("1", 'number "1"')]
)
def test_another_job_format_is_refused(job, form, said):
    change(job[1], format=form)
    before = outputs(job[1]), rows(job[1])
    with pytest.raises(JobRefusedError, match=f"{said}, and this version goes on with format {JOB_FORMAT} only"):
        do(*job)
    assert before == (outputs(job[1]), rows(job[1]))


def test_other_numerics_are_refused(job, monkeypatch):
    monkeypatch.setattr("dajax.batch.job.NUMERICS", NUMERICS + 1)
    said = f"numerics was {NUMERICS} and is {NUMERICS + 1} (this version of dajax computes other values)"
    with pytest.raises(JobRefusedError, match=re.escape(said)):
        do(*job)


@pytest.mark.parametrize(
    "content", ["", "[]", "null", "{}", '{"format": 2}', '{"format": 2, "parameters": 1, "keys": ""}']
)
def test_a_damaged_job_file_is_refused(job, content):
    (job[1] / JOB).write_text(content)
    with pytest.raises(JobRefusedError, match=r"job\.json is damaged"):
        do(*job)


def test_all_differences_are_named(tmp_path):
    storage = LocalStorage(tmp_path)
    parameters = {"size": 1, "config": {"a": 1, "b": {"c": [1, 2], "d": 0}}, "long": "x" * 100, "same": (1,)}
    assert claim(storage, parameters, "keys")
    assert claim(storage, parameters, "keys")
    assert not claim(storage, parameters, "others")
    other = {"config": {"a": 2, "b": {"c": [1], "d": 0}}, "long": "y" * 100, "same": [1], "new": None, "more": 1}
    with pytest.raises(JobRefusedError) as error:
        claim(storage, other, "keys")
    for text in (
        "config.a was 1 and is 2; config.b.c was [1, 2] and is [1]; ",
        "; more was null and is 1; size was 1 and is null. Give",
        f'long was "{"x" * 23}…{"x" * 7}" and is "{"y" * 23}…',
    ):
        assert text in str(error.value)


def test_digests_depend_on_everything():
    params = PlainEstimator().params
    assert weights_digest(params) == weights_digest(dict(params))
    others = [
        PlainEstimator(2.0).params,
        {"other": params["scale"]},
        {"scale": params["scale"][None]},
        {"scale": params["scale"].astype("float64")},
    ]
    assert len({weights_digest(other) for other in [params, *others]}) == 5
    assert len({keys_digest(keys) for keys in ([], ["ab"], ["a", "b"], ["b", "a"], ["a"])}) == 5


@pytest.mark.parametrize("value_range", [(2, 1), (1, 1), (0, float("nan"))])
def test_value_ranges_that_are_none(value_range):
    with pytest.raises(ConfigError, match=r"value_range must be \(black, white\)"):
        BatchSettings(value_range=value_range).check()
