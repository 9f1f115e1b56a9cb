"""How good depth maps are, in float64."""

from typing import TYPE_CHECKING

from dajax.lazy import lazy_names

if TYPE_CHECKING:
    from dajax.evaluation.metrics import AverageMetrics as AverageMetrics
    from dajax.evaluation.metrics import DepthMetrics as DepthMetrics
    from dajax.evaluation.metrics import OrdinalAccuracy as OrdinalAccuracy
    from dajax.evaluation.metrics import align_inverse_depth as align_inverse_depth
    from dajax.evaluation.metrics import average_metrics as average_metrics
    from dajax.evaluation.metrics import depth_metrics as depth_metrics
    from dajax.evaluation.metrics import ordinal_accuracy as ordinal_accuracy
else:
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        {
            "metrics": [
                "AverageMetrics",
                "DepthMetrics",
                "OrdinalAccuracy",
                "align_inverse_depth",
                "average_metrics",
                "depth_metrics",
                "ordinal_accuracy",
            ],
        },
    )
