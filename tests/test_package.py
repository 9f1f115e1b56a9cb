import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import dajax

ROOT = Path(dajax.__file__).parent.parent


def ask(code):
    """Return what a fresh interpreter prints, as JSON."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return json.loads(run.stdout)


def test_import_is_light():
    code = """if True:
        import json, sys
        import dajax
        dir(dajax), dajax.errors, dajax.list_models(), dajax.DepthAnythingConfig.small()
        bridge = sys.modules.get("jax._src.xla_bridge")
        print(json.dumps({"modules": list(sys.modules), "backends": list(bridge._backends) if bridge else []}))
    """
    found = ask(code)
    heavy = {"optax", "huggingface_hub", "tyro", "PIL", "tqdm", "flax", "jax", "numpy", "safetensors"}
    assert heavy.isdisjoint(found["modules"])
    assert found["backends"] == []


def test_the_network_starts_no_backend():
    code = """if True:
        import json, sys
        import dajax
        model = dajax.DepthAnything(dajax.DepthAnythingConfig.small())
        dajax.load, dajax.save
        from jax._src import xla_bridge
        print(json.dumps({"modules": list(sys.modules), "backends": list(xla_bridge._backends)}))
    """
    found = ask(code)
    assert {"huggingface_hub", "tyro", "PIL", "torch"}.isdisjoint(found["modules"])
    assert found["backends"] == []


def test_contract():
    assert set(dajax.__all__) >= {
        "DepthAnything", "DepthAnythingConfig", "DepthEstimationPipeline", "DepthEstimator", "DepthEstimatorOutput",
        "DepthImageProcessor", "enable_compilation_cache", "errors", "list_models", "load", "pipeline", "save",
    }  # fmt: skip


def test_version():
    assert dajax.__version__ == metadata.version("depth-anything-jax")


def test_errors_are_one_family():
    errors = dajax.errors
    family = {errors.ConfigError, errors.WeightsError, errors.ImageError, errors.HubError, errors.JobError}
    assert all(issubclass(error, errors.DajaxError) for error in family)
    with pytest.raises(errors.DajaxError, match="huge"):
        dajax.DepthAnythingConfig.v1("huge")


HOST = r"(?:github|gitlab|bitbucket|codeberg)\.[a-z]+"
ADDRESS = re.compile(rf"(?:git@|https?://(?:www\.)?){HOST}[/:][\w.-]+/[\w.-]+|colab\.research\.google\.com/[\w/.-]+")
SHOWN = ("*.md", "docs/**/*", "notebooks/*", "dajax/**/*.py", "tools/*.py", "convert/*.py", "benchmarks/*.py")


def test_the_address_of_the_repository_stands_in_pyproject_alone():
    """Until [project.urls] has an address nothing may show one: such a link would be dead."""
    project = ROOT / "pyproject.toml"
    if not project.exists():
        pytest.skip("dajax is installed, not checked out")
    urls = tuple(tomllib.loads(project.read_text())["project"]["urls"].values())
    found = [
        f"{path.relative_to(ROOT)}: {address}"
        for pattern in SHOWN
        for path in ROOT.glob(pattern)
        if path.suffix in (".md", ".rst", ".py", ".ipynb")
        for address in ADDRESS.findall(path.read_text())
        if not address.startswith(urls)
    ]
    assert not found, found
