"""Depth Anything V2 in pure JAX and Flax.

Everything here is loaded on first use: `import dajax` alone starts no JAX backend and imports no optax,
huggingface_hub, tyro or PIL.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dajax import errors as errors
    from dajax.checkpoints import list_models as list_models
    from dajax.config import DepthAnythingConfig as DepthAnythingConfig
    from dajax.config import Dinov2Config as Dinov2Config
    from dajax.depth_maps.display import show as show
    from dajax.inference.compilation_cache import enable_compilation_cache as enable_compilation_cache
    from dajax.inference.estimator import DepthEstimator as DepthEstimator
    from dajax.inference.pipeline import DepthEstimationPipeline as DepthEstimationPipeline
    from dajax.inference.pipeline import pipeline as pipeline
    from dajax.model.depth_anything import DepthAnything as DepthAnything
    from dajax.model.depth_anything import DepthEstimatorOutput as DepthEstimatorOutput
    from dajax.preprocessing.processor import DepthImageProcessor as DepthImageProcessor
    from dajax.weights.loading import load as load
    from dajax.weights.saving import save as save

__version__ = "0.1.0"

_HOME = {
    "errors": "",
    "DepthAnythingConfig": "config",
    "Dinov2Config": "config",
    "list_models": "checkpoints",
    "DepthImageProcessor": "preprocessing.processor",
    "enable_compilation_cache": "inference.compilation_cache",
    "DepthEstimator": "inference.estimator",
    "DepthEstimationPipeline": "inference.pipeline",
    "pipeline": "inference.pipeline",
    "show": "depth_maps.display",
    "DepthAnything": "model.depth_anything",
    "DepthEstimatorOutput": "model.depth_anything",
    "load": "weights.loading",
    "save": "weights.saving",
}

__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dajax' has no attribute {name!r}")
    home = _HOME[name]
    module = importlib.import_module(f"dajax.{home or name}")
    value = getattr(module, name) if home else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
