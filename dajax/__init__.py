"""Depth Anything V2 in pure JAX and Flax.

Everything here is loaded on first use: `import dajax` alone starts no JAX backend and imports no optax,
huggingface_hub, tyro or PIL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dajax.lazy import lazy_names
from dajax.version import __version__ as __version__

if TYPE_CHECKING:
    from dajax import batch as batch
    from dajax import depth_maps as depth_maps
    from dajax import errors as errors
    from dajax import evaluation as evaluation
    from dajax import geometry as geometry
    from dajax import images as images
    from dajax import inference as inference
    from dajax import losses as losses
    from dajax import model as model
    from dajax import preprocessing as preprocessing
    from dajax import training as training
    from dajax import video as video
    from dajax import weights as weights
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
else:
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        {
            "checkpoints": ["list_models"],
            "config": ["DepthAnythingConfig", "Dinov2Config"],
            "depth_maps.display": ["show"],
            "inference.compilation_cache": ["enable_compilation_cache"],
            "inference.estimator": ["DepthEstimator"],
            "inference.pipeline": ["DepthEstimationPipeline", "pipeline"],
            "model.depth_anything": ["DepthAnything", "DepthEstimatorOutput"],
            "preprocessing.processor": ["DepthImageProcessor"],
            "weights.loading": ["load"],
            "weights.saving": ["save"],
        },
        submodules=[
            "batch",
            "depth_maps",
            "errors",
            "evaluation",
            "geometry",
            "images",
            "inference",
            "losses",
            "model",
            "preprocessing",
            "training",
            "video",
            "weights",
        ],
    )
