"""The few operations that decide the network's speed, as a plain formula and as each platform computes them."""

from typing import TYPE_CHECKING

from dajax.lazy import lazy_names

if TYPE_CHECKING:
    from dajax.kernels.operations import attention as attention
    from dajax.kernels.operations import convolution_dtype as convolution_dtype
    from dajax.kernels.operations import convolve as convolve
    from dajax.kernels.operations import depth_dtype as depth_dtype
    from dajax.kernels.operations import each_image as each_image
    from dajax.kernels.operations import layer_norm as layer_norm
    from dajax.kernels.operations import layer_norms as layer_norms
    from dajax.kernels.operations import product as product
    from dajax.kernels.operations import project as project
    from dajax.kernels.operations import project_patches as project_patches
    from dajax.kernels.operations import residual_unit as residual_unit
    from dajax.kernels.operations import resize as resize
    from dajax.kernels.operations import resize_and_convolve as resize_and_convolve
    from dajax.kernels.operations import takes_images_apart as takes_images_apart
    from dajax.kernels.operations import upsample_and_convolve as upsample_and_convolve
    from dajax.kernels.precision import product_precision as product_precision
    from dajax.kernels.precision import wide as wide
    from dajax.kernels.reference import Weights as Weights
    from dajax.kernels.reference import apply_attention as apply_attention
    from dajax.kernels.reference import attention_weights as attention_weights
    from dajax.kernels.targets import Target as Target
    from dajax.kernels.targets import current_target as current_target
    from dajax.kernels.targets import target as target
else:
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        {
            "operations": [
                "attention",
                "convolution_dtype",
                "convolve",
                "depth_dtype",
                "each_image",
                "layer_norm",
                "layer_norms",
                "product",
                "project",
                "project_patches",
                "residual_unit",
                "resize",
                "resize_and_convolve",
                "takes_images_apart",
                "upsample_and_convolve",
            ],
            "precision": ["product_precision", "wide"],
            "reference": ["Weights", "apply_attention", "attention_weights"],
            "targets": ["Target", "current_target", "target"],
        },
    )
