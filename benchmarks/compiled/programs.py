"""The programs that are compiled: the network or a part of it, by dajax or a peer, as functions of shapes alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

import dajax
from dajax import kernels

PARTS = {
    "embeddings": ("backbone", "embeddings"),
    "layer": ("backbone", "layer_0"),
    "attention": ("backbone", "layer_0", "attention"),
    "mlp": ("backbone", "layer_0", "mlp"),
    "encoder": ("backbone",),
    "neck": ("neck",),
    "head": ("head",),
}


@dataclass(frozen=True)
class Program:
    """A function to compile.

    Attributes:
        function: a function (params, arrays) -> arrays.
        params: the shapes and types of the params.
        arrays: those of the other arguments.
    """

    function: Callable[[Any, Any], Any]
    params: Any
    arrays: Any


def dajax_program(size: str, dtype: str, batch: int, image: tuple[int, int], part: str = "all") -> Program:
    """Return dajax's network, or the part that `PARTS` names, with params in the types that an estimator keeps.

    Args:
        size: "small", "base" or "large".
        dtype: the computation dtype.
        batch: the number of images.
        image: their height and width.
        part: "all", or one of `PARTS`, as it is called within the network.
    """
    from flax.traverse_util import unflatten_dict

    from dajax.inference.estimator import parameter_dtype
    from dajax.weights.shapes import parameter_shapes

    config = dajax.DepthAnythingConfig.from_pretrained(size)
    model = dajax.DepthAnything(config, dtype=jnp.dtype(dtype))
    shapes = {
        path: jax.ShapeDtypeStruct(shape, parameter_dtype(path, jnp.dtype(dtype)))
        for path, shape in parameter_shapes(config).items()
    }
    pixels = jax.ShapeDtypeStruct((batch, *image, 3), jnp.float32)
    if part == "all":
        return Program(
            lambda params, pixels: model.apply({"params": params}, pixels).predicted_depth,
            unflatten_dict(shapes, sep="/"),
            pixels,
        )
    path = PARTS[part]
    module, arguments = _call_of(model, unflatten_dict(shapes, sep="/"), pixels, path)
    leaves, tree = jax.tree.flatten(arguments)
    is_array = [hasattr(leaf, "shape") for leaf in leaves]

    def function(params: Any, arrays: list[Any]) -> list[Any]:
        given = iter(arrays)
        values = [next(given) if array else leaf for leaf, array in zip(leaves, is_array, strict=True)]
        for name in path:
            params = params[name]
        args, kwargs = jax.tree.unflatten(tree, values)
        with jax.named_scope("/".join(path)):
            return jax.tree.leaves(module.apply({"params": params}, *args, **kwargs))

    prefix = "/".join(path) + "/"
    kept = {name: shape for name, shape in shapes.items() if name.startswith(prefix)}
    return Program(
        function,
        unflatten_dict(kept, sep="/"),
        [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf, array in zip(leaves, is_array, strict=True) if array],
    )


def keras_hub_program(size: str, dtype: str, batch: int, image: tuple[int, int]) -> Program:
    """Return keras-hub's network: in float32, or, for bfloat16, by Keras's policy "mixed_bfloat16".

    Raises:
        ValueError: the images are not square.
    """
    from benchmarks.peers import keras_hub_estimator

    if image[0] != image[1]:
        raise ValueError(f"keras-hub's images are square, got {image[0]}x{image[1]}")
    policy = "mixed_bfloat16" if dtype == "bfloat16" else dtype
    estimator = keras_hub_estimator(dajax.DepthAnythingConfig.from_pretrained(size), image[0], policy)

    def function(params: Any, pixels: Any) -> Any:
        outputs, _ = estimator.stateless_call(*params, {"images": pixels}, training=False)
        return outputs["depths"]

    variables = (estimator.trainable_variables, estimator.non_trainable_variables)
    params = jax.tree.map(lambda variable: jax.ShapeDtypeStruct(variable.shape, variable.dtype), variables)
    return Program(function, params, jax.ShapeDtypeStruct((batch, *image, 3), jnp.float32))


def _call_of(model: Any, params: Any, pixels: Any, path: tuple[str, ...]) -> tuple[Any, tuple[Any, Any]]:
    """Return the module at a path of the network, and the arguments of its first call, with shapes for arrays."""
    import flax.linen as nn

    found: list[Any] = []

    def note(next_function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if context.module.path == path and context.method_name == "__call__" and not found:
            found.append((context.module.clone(parent=None, name=None), (args, kwargs)))
        return next_function(*args, **kwargs)

    with kernels.target("tpu"), nn.intercept_methods(note):
        jax.eval_shape(lambda params, pixels: model.apply({"params": params}, pixels).predicted_depth, params, pixels)
    if not found:
        raise ValueError(f"the network has no module {'/'.join(path)}")
    module, arguments = found[0]
    return module, jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if hasattr(leaf, "shape") else leaf, arguments
    )
