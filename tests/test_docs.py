"""The code blocks of README and docs run as they stand, in order, with a Hub on this machine."""

import inspect
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import jax
import pytest
from videos import make_video

import dajax
from dajax.weights.random import random_params

ROOT = Path(__file__).parents[1]
PAGES = [path for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))] if "```" in path.read_text()]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
SCENE = Path(dajax.__file__).parent / "assets" / "scene.jpg"


def blocks(page):
    return BLOCK.findall(page.read_text())


@pytest.fixture(scope="session")
def small_files(tmp_path_factory):
    """Files of the real size of Small, whose names and shapes say what they are."""
    folder = tmp_path_factory.mktemp("files")
    config = dajax.DepthAnythingConfig.small()
    params = random_params(config)
    dajax.save(folder, dajax.DepthAnything(config), params, format="official")
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch, request):
    """A folder with the files that the blocks name."""
    place = tmp_path / "place"
    (place / "images").mkdir(parents=True)
    for name in ("image.jpg", "room.jpg", "images/a.jpg", "images/b.jpg"):
        shutil.copy(SCENE, place / name)
    if "depth_anything_v2_vits.pth" in request.getfixturevalue("page").read_text():
        official = request.getfixturevalue("small_files") / "depth_anything_v2_vits.pth"
        (place / official.name).symlink_to(official)
        (place / "latest.pth").symlink_to(official)
    if "video.mp4" in request.getfixturevalue("page").read_text():
        make_video(place / "video.mp4", pts=[3000 * i for i in range(40)])
    monkeypatch.chdir(place)
    return place


# These train, render and make videos, for up to a minute.
LONG = ("scenes", "training", "video")


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if page.stem in LONG else []) for page in PAGES],
)
def test_blocks_run(page, place, released_hub, monkeypatch):
    # Its settings would stay for the tests that follow in this process. The first name has to be replaced first: dajax
    # looks it up in the second place, and pytest puts back what it finds.
    monkeypatch.setattr(dajax, "enable_compilation_cache", lambda directory=None: None)
    monkeypatch.setattr("dajax.inference.compilation_cache.enable_compilation_cache", lambda directory=None: None)
    # Tests have no images from the Web.
    monkeypatch.setattr("dajax.images.fetch.fetch", lambda url, timeout=None: SCENE.read_bytes())
    # The only process of a pod.
    monkeypatch.setattr(jax.distributed, "initialize", lambda: None)
    namespace = {"__name__": "__main__"}
    for language, text in blocks(page):
        print(f"--- {page.name}: {text}")
        match language:
            case "python":
                with warnings.catch_warnings(), jax.numpy_dtype_promotion("standard"):
                    # Warnings about licences, and other libraries' warnings, are no failures.
                    warnings.simplefilter("default")
                    exec(compile(text, page.name, "exec"), namespace)
            case "sh":
                for line in text.replace("\\\n", " ").splitlines():
                    run_line(shlex.split(line, comments=True))
            case "toml":  # its first line names the file
                (place / text.split("#", 1)[1].split(":", 1)[0].strip()).write_text(text)
            case other:
                assert other in ("", "text", "json"), f"{page.name} has a block of {other!r}, which nothing runs"


def run_line(words):
    """Run one line of a shell block. A new kind of command is an error, so that none is left out."""
    match words:
        case []:
            pass
        case ["dajax", *arguments]:
            assert status_of(arguments) == 0, arguments
        case ["hf", "upload", _, folder]:  # check that the command and the folder exist
            assert Path(folder, "model.safetensors").exists()
            command = [sys.executable, "-c", "from huggingface_hub.cli.hf import main; main()", "upload", "--help"]
            assert "REPO_ID" in subprocess.run(command, capture_output=True, text=True, check=True).stdout.upper()
        case ["make", *targets]:  # these run the tests themselves: check that they exist
            subprocess.run(["make", "--dry-run", *targets], cwd=ROOT, check=True, capture_output=True)
        case ["python", "-m", "pytest", *arguments]:
            files = [argument for argument in arguments if argument.startswith("tests")]
            assert all((ROOT / file).exists() for file in files), arguments
        case ["python", "-m", "convert", *arguments]:
            subprocess.run([sys.executable, "-c", CONVERT, *arguments], check=True)
        case ["pip", "install", *what]:
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            for extra in re.findall(r"\[(.*?)\]", " ".join(what)):
                assert set(extra.split(",")) <= extras.keys(), what
        case _:
            raise AssertionError(f"no test runs {shlex.join(words)!r}")


CONVERT = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from convert.__main__ import main; main(sys.argv[1:])"


def status_of(arguments):
    from dajax.cli import main

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
    return stopped.value.code


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


def test_no_page_is_left_out():
    assert {"README", "checkpoints"} <= {page.stem for page in PAGES}


EXAMPLES = [*PAGES, *sorted((ROOT / "notebooks").glob("*.py")), *sorted((ROOT / "notebooks").glob("*.ipynb"))]


@pytest.mark.parametrize("page", EXAMPLES, ids=lambda page: page.name)
def test_examples_name_nothing_below_a_room(page):
    """Where in a room a name is defined is nobody's business: modules may move."""
    if page.name == "architecture.md":
        return
    for room, name in re.findall(r"\bdajax\.([a-z_]+)\.(\w+)", page.read_text()):
        module = getattr(dajax, room, None)
        if inspect.ismodule(module):
            assert name in getattr(module, "__all__", dir(module)), f"dajax.{room}.{name}"
    assert set(re.findall(r"from dajax\.(\S+) import", page.read_text())) <= set(dajax.__all__)
