"""The few operations that decide the network's speed, as a plain formula and as each platform computes them."""

from typing import TYPE_CHECKING

from dajax.lazy import lazy_names

if TYPE_CHECKING:
    from dajax.kernels.targets import Target as Target
    from dajax.kernels.targets import current_target as current_target
    from dajax.kernels.targets import target as target
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__, {"targets": ["Target", "current_target", "target"]})
