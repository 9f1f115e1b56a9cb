"""Checkpoint files to params, and back."""

from typing import TYPE_CHECKING

from dajax.lazy import lazy_names

if TYPE_CHECKING:
    from dajax.weights.conversion import convert as convert
    from dajax.weights.loading import load_encoder as load_encoder
    from dajax.weights.random import random_params as random_params
    from dajax.weights.shapes import parameter_shapes as parameter_shapes
else:
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        {
            "conversion": ["convert"],
            "loading": ["load_encoder"],
            "random": ["random_params"],
            "shapes": ["parameter_shapes"],
        },
    )
