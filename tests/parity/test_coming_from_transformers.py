"""The tables of docs/coming-from-transformers.md: names on both sides exist, and none of Transformers' is left out."""

import dataclasses
import importlib
import inspect
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import transformers

import dajax
from dajax import limits

TEXT = (Path(__file__).parents[2] / "docs" / "coming-from-transformers.md").read_text()
VERSION = re.search(r"Transformers (\d+\.\d+)", TEXT)[1]
pytestmark = pytest.mark.skipif(
    not transformers.__version__.startswith(f"{VERSION}."),
    reason=f"the page is about Transformers {VERSION}: pip install with constraints.txt",
)
# Functions whose keyword arguments go on to others.
PASSED_ON = {
    "transformers.DepthEstimationPipeline.__call__": (
        transformers.Pipeline.__call__,
        transformers.DepthEstimationPipeline._sanitize_parameters,
    ),
    "dajax.pipeline": (dajax.DepthEstimationPipeline, dajax.DepthEstimator, dajax.load),
    "transformers.pipeline": (transformers.Pipeline, transformers.DepthEstimationPipeline._sanitize_parameters),
    "transformers.AutoModelForDepthEstimation.from_pretrained": (transformers.PreTrainedModel.from_pretrained,),
}


class Table(NamedTuple):
    theirs: str
    ours: str
    rows: list[tuple[list[str], list[str]]]


def spans(cell):
    return re.findall(r"`([^`]+)`", cell)


def tables():
    for block in re.findall(r"(?:^\|.*\n)+", TEXT, re.MULTILINE):
        header, _, *rows = ([cell.strip("| ") for cell in line.split(" | ")] for line in block.splitlines())
        if header[0] != "Topic":
            yield Table(header[0].strip("`"), header[1].strip("`"), [(spans(row[0]), spans(row[1])) for row in rows])


TABLES = list(tables())


def found(path):
    """The object of a dotted name."""
    parts = path.split(".")
    for count in range(len(parts), 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:count]))
        except ImportError:
            continue
        for part in parts[count:]:
            fields = getattr(thing, "__dataclass_fields__", {})
            thing = fields[part] if part in fields else getattr(thing, part)
        return thing
    raise AssertionError(f"no module of {path}")


def signature(function) -> dict[str, inspect.Parameter]:
    function = function.__init__ if inspect.isclass(function) else function
    return {n: p for n, p in inspect.signature(function).parameters.items() if n not in ("self", "cls")}


def named(function) -> set[str]:
    """Arguments that a signature names."""
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {name for name, parameter in signature(function).items() if parameter.kind not in variable}


def accepted(function) -> set[str]:
    """Arguments that a function takes; those behind **kwargs too, as far as annotations or code name them."""
    names = named(function)
    for parameter in signature(function).values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            kwargs = getattr(parameter.annotation, "__args__", [None])[0]
            names |= set(getattr(kwargs, "__annotations__", {}))
            code = inspect.getsource(function.__init__ if inspect.isclass(function) else function)
            names |= {a or b for a, b in re.findall(r'kwargs\.(?:pop|get)\(\s*"(\w+)"|"(\w+)" in kwargs', code)}
    return names


def has(owner: str, name: str) -> bool:
    thing = found(owner)
    if inspect.ismodule(thing):
        return hasattr(thing, name)
    if inspect.isclass(thing):
        fields = {name for base in thing.__mro__ for name in getattr(base, "__annotations__", {})}
        fields |= {field.name for field in dataclasses.fields(thing)} if dataclasses.is_dataclass(thing) else set()
        return name in fields or hasattr(thing, name) or name in accepted(thing)
    return any(name in accepted(function) for function in (thing, *PASSED_ON.get(owner, ())))


def own_fields(config) -> set[str]:
    """Fields of a config class, without those that every config has."""
    return {name.removeprefix("_") for name in config.__annotations__ if name not in ("model_type", "sub_configs")}


PROCESSOR = set(transformers.DPTImageProcessor.valid_kwargs.__annotations__)
MODEL = transformers.DepthAnythingForDepthEstimation
OUTPUT = transformers.modeling_outputs.DepthEstimatorOutput
# What Transformers has, from itself.
COMPLETE = {
    "transformers.pipeline": named(transformers.pipeline),
    "transformers.DepthEstimationPipeline.__call__": named(transformers.Pipeline.__call__)
    | named(transformers.DepthEstimationPipeline._sanitize_parameters),
    "transformers.AutoModelForDepthEstimation.from_pretrained": named(MODEL.from_pretrained),
    "transformers.DepthAnythingForDepthEstimation.forward": named(MODEL.forward),
    "transformers.DepthAnythingForDepthEstimation.save_pretrained": named(MODEL.save_pretrained),
    "transformers.DepthAnythingForDepthEstimation.push_to_hub": named(MODEL.push_to_hub),
    "transformers.modeling_outputs.DepthEstimatorOutput": {field.name for field in dataclasses.fields(OUTPUT)},
    "transformers.DepthAnythingConfig": own_fields(transformers.DepthAnythingConfig),
    "transformers.Dinov2Config": own_fields(transformers.Dinov2Config),
    "transformers.DPTImageProcessor": PROCESSOR,
    "transformers.DPTImageProcessor.preprocess": named(transformers.DPTImageProcessor.preprocess),
    "transformers.DPTImageProcessor.post_process_depth_estimation": named(
        transformers.DPTImageProcessor.post_process_depth_estimation
    ),
}
# What is called by hand here.
OURS = ("dajax.load", "dajax.DepthEstimationPipeline.__call__", "dajax.DepthAnything.__call__", "dajax.save")


def test_the_page_has_its_tables():
    assert {table.theirs for table in TABLES} >= set(COMPLETE)
    assert sum(len(table.rows) for table in TABLES) > 100


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.theirs)
def test_names_exist_on_both_sides(table):
    for theirs, ours in table.rows:
        assert theirs or ours
        for name in theirs:
            assert has(table.theirs, name), f"{table.theirs} has no {name}"
        for name in ours:
            assert has(*name.rsplit(".", 1)) if "." in name else has(table.ours, name), f"{table.ours} has no {name}"


@pytest.mark.parametrize("owner", [*COMPLETE, *OURS])
def test_nothing_is_left_out(owner):
    on_page = set()
    for table in TABLES:
        for theirs, ours in table.rows:
            on_page.update(theirs if owner == table.theirs else ours if owner == table.ours else ())
    expected = COMPLETE[owner] if owner in COMPLETE else named(found(owner))
    assert len(expected) > 1
    assert expected <= on_page, f"{owner}: {sorted(expected - on_page)} are missing"


@pytest.mark.parametrize(
    "name", sorted({span for span in spans(TEXT) if re.match(r"(dajax|transformers|jax)\.[\w.]+$", span)})
)
def test_names_in_the_text_exist(name):
    assert found(name) is not None


def test_bounds_of_urls_are_those_in_the_text():
    bounds = f"{limits.URL_TIMEOUT:g} seconds .*{limits.MAX_URL_BYTES / 1e6:g} MB, {limits.MAX_REDIRECTS} redirects"
    assert re.search(bounds, TEXT)
