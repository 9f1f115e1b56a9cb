"""Messages of the library speak of options when a command prints them."""

import ast
import re
from pathlib import Path

import pytest

import dajax
from dajax.cli.messages import in_options

PACKAGE = Path(dajax.__file__).parent
# What is for callers in Python alone: no command leads there.
NOT_OF_COMMANDS = (
    "evaluation/metrics.py", "depth_maps/display.py", "geometry/points.py", "inference/parallel.py",
    "inference/pipeline.py", "losses.py", "resample.py", "model/", "training/optimizer.py", "training/step.py",
)  # fmt: skip
# Arguments that no command passes on: each is a part of a message that has them.
NOT_OF_OPTIONS = (
    "allow_urls=True only",  # `predict` allows them
    "alpha channel. Pass the array",  # layout and alpha of arrays, not of files
    "four axes are a batch; pass its images",
    "which value is white is not known. Convert with array.astype",
    "floating-point pixels must lie within [0, 1]",
    "value_range must be (black, white)",
    "token=True",
    "a boolean mask is not an image",
    "the first and the last axis could both be channels",
    "a masked array; say what is behind the mask",
    'needs jax.config.update("jax_enable_x64", True)',  # dtype is one of a few here
    "or dajax.pipeline, which take images of mixed sizes",
    "programs, and an estimator keeps",  # no command compiles ahead
    "there are neither sizes nor buckets",
)
PYTHON = re.compile(
    r"=…|\w=(?:True|False|None)\b|\w=['\"(]|\bdajax\.[a-z]|\bjax\.[a-z]|\bpass(?:es)? \w|\bfind_images\b|\barray\.[a-z]"
)
SETTINGS = re.compile(r"(?<![\w.'-])(batch_size|input_size|max_rejects|process_index|decode_timeout|raw_size) ")


def texts():
    """Yield where and what of each message that the library raises or warns with; values are X."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name.startswith(("cli/", *NOT_OF_COMMANDS)):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            raised = isinstance(node, ast.Call) and re.search(r"(Error|warn|Warning)$", ast.unparse(node.func))
            returned = isinstance(node, ast.Return) and name == "hub.py" and node.value is not None
            if raised and node.args:
                yield f"{name}:{node.lineno}", text_of(node.args[0])
            elif returned:
                yield f"{name}:{node.lineno}", text_of(node.value)
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "hint":
                yield f"{name}:{node.lineno}", f". {text_of(node.value)}"


def text_of(node) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
    return ""


def test_no_message_of_a_command_speaks_python():
    seen, wrong = 0, []
    for where, text in texts():
        if any(part in text for part in NOT_OF_OPTIONS):
            continue
        seen += 1
        said = in_options(text)
        if PYTHON.search(said) or SETTINGS.search(said):
            wrong.append(f"{where}: {said}")
    assert seen > 200
    assert not wrong, "\n".join(wrong)


def test_every_exception_is_needed():
    everything = [text for _, text in texts()]
    for part in NOT_OF_OPTIONS:
        assert any(part in text for text in everything), part


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("x: only the config of its own model can say what it is (config=…)", "what it is (--config)"),
        ("X is neither an alias (dajax.list_models()), nor", "an alias (`dajax models`), nor"),
        ("batch_size must be a whole number", "--batch-size must be"),
        ("shards must be at least 1", "--shards must be"),
        ("stopped: 2 images, and max_rejects is 1", "and --max-rejects is 1"),
        ("a.json: config.batch_size is no field", "config.batch_size is no field"),
        ("the size must be positive", "the size must be positive"),
        ("the repository is gated, then pass token=… (or run: hf auth login)", "then run: hf auth login"),
        (
            "9 pixels are more than max_pixels=4. Pass a larger max_pixels if you trust the image.",
            "limit of 4. Make",
        ),
    ],
)
def test_advice(message, said):
    assert said in in_options(message)
