"""Images to depth maps: what users call."""

from typing import TYPE_CHECKING

from dajax.lazy import lazy_names

if TYPE_CHECKING:
    from dajax.inference.compilation_cache import enable_compilation_cache as enable_compilation_cache
    from dajax.inference.confidence import flip_disagreement as flip_disagreement
    from dajax.inference.estimator import DepthEstimator as DepthEstimator
    from dajax.inference.image_files import FilesReport as FilesReport
    from dajax.inference.image_files import predict_files as predict_files
    from dajax.inference.inputs import ImageInput as ImageInput
    from dajax.inference.parallel import param_shardings as param_shardings
    from dajax.inference.pipeline import DepthEstimationPipeline as DepthEstimationPipeline
    from dajax.inference.programs import CompiledProgram as CompiledProgram
    from dajax.inference.self_check import Agreement as Agreement
    from dajax.inference.self_check import check_device as check_device
    from dajax.inference.tiles import tiled_depth as tiled_depth
else:
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        {
            "compilation_cache": ["enable_compilation_cache"],
            "programs": ["CompiledProgram"],
            "confidence": ["flip_disagreement"],
            "estimator": ["DepthEstimator"],
            "image_files": ["FilesReport", "predict_files"],
            "inputs": ["ImageInput"],
            "parallel": ["param_shardings"],
            "pipeline": ["DepthEstimationPipeline"],
            "self_check": ["Agreement", "check_device"],
            "tiles": ["tiled_depth"],
        },
    )
