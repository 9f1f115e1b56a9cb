"""Makes a jax function of a kernel: with all derivatives, vmap, and programs that XLA divides over several devices.

A Pallas kernel has no derivatives, and XLA cannot divide it over devices. The function that `kernel_function` returns
takes the plain formula wherever the kernel cannot serve. It is a primitive of jax because `jax.custom_vjp` forbids
forward mode, `jax.custom_jvp` cannot name a function for reverse mode, and neither knows for how many devices a program
is made.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

Function = Callable[..., Any]


class Kernel(NamedTuple):
    """A kernel and the formula that it computes; both are functions of the same arrays and options.

    Attributes:
        compute: the kernel.
        plain: the formula, made of jax's own operations.
        images: how many of the arrays, counted from the first, have the images of a batch as their first axis. The
            result has them too.
        pull_back: a function (arrays, cotangent) -> cotangents of the arrays; None for the one of the plain formula.
        can_be_divided: whether XLA can divide the kernel over devices.
    """

    compute: Function
    plain: Function
    images: int
    pull_back: Function | None = None
    can_be_divided: bool = False


class _Call(NamedTuple):
    """A kernel with options, and over how many axes jax.vmap maps its tangent."""

    kernel: Kernel
    options: tuple[tuple[str, Any], ...]
    vmaps: int = 0

    def compute(self, *arrays: Array) -> Array:
        result: Array = self.kernel.compute(*arrays, **dict(self.options))
        return result

    def plain(self, *arrays: Array) -> Array:
        function = partial(self.kernel.plain, **dict(self.options))
        for _ in range(self.vmaps):
            function = jax.vmap(function)
        result: Array = function(*arrays)
        return result

    def tangent(self, *arrays_and_tangents: Array) -> Array:
        half = len(arrays_and_tangents) // 2
        result: Array = jax.jvp(self.plain, arrays_and_tangents[:half], arrays_and_tangents[half:])[1]
        return result

    def pull_back(self, arrays: tuple[Array, ...], cotangent: Array) -> tuple[Array, ...]:
        if self.kernel.pull_back is None:
            return jax.vjp(self.plain, *arrays)[1](cotangent)
        function = partial(self.kernel.pull_back, **dict(self.options))
        for _ in range(self.vmaps):
            function = jax.vmap(function)
        result: tuple[Array, ...] = function(arrays, cotangent)
        return result


def kernel_function(kernel: Kernel) -> Function:
    """Return a function of the kernel's arrays and, by keyword, its options, which must be hashable."""

    def function(*arrays: Array, **options: Any) -> Array:
        call = _Call(kernel, tuple(sorted(options.items())))
        result: Array = _inline(call)(*arrays) if kernel.can_be_divided else _compute_p.bind(*arrays, call=call)
        return result

    return function


def _inline(call: _Call) -> Function:
    """Return the kernel itself with our derivatives: to divide it, jax has to see what is inside."""
    compute = jax.custom_jvp(call.compute)

    def derivative(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
        return compute(*primals), _tangent_p.bind(*primals, *tangents, call=call)

    compute.defjvp(derivative)
    return compute


# A kernel's result; and the tangent of it, whose arguments are the arrays and their tangents.
_compute_p = Primitive("dajax_kernel")
_tangent_p = Primitive("dajax_kernel_tangent")


def _compute_shape(*arrays: Any, call: _Call) -> Any:
    return _like(jax.eval_shape(call.plain, *map(_shape, arrays)), arrays)


def _tangent_shape(*arrays: Any, call: _Call) -> Any:
    return _compute_shape(*arrays[: len(arrays) // 2], call=call)


def _shape(array: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def _like(shape: jax.ShapeDtypeStruct, arrays: tuple[Any, ...]) -> Any:
    """Return an abstract array of this shape that varies over the mesh axes over which the arrays vary."""
    varies = frozenset().union(*(getattr(array, "vma", None) or () for array in arrays))
    return arrays[0].update(
        shape=shape.shape, dtype=shape.dtype, weak_type=False, **({"vma": varies} if varies else {})
    )


def _compute_jvp(primals: tuple[Array, ...], tangents: tuple[Any, ...], *, call: _Call) -> tuple[Array, Array]:
    tangents = tuple(map(ad.instantiate_zeros, tangents))
    return _compute_p.bind(*primals, call=call), _tangent_p.bind(*primals, *tangents, call=call)


def _tangent_jvp(primals: tuple[Array, ...], tangents: tuple[Any, ...], *, call: _Call) -> tuple[Array, Array]:
    tangents = tuple(map(ad.instantiate_zeros, tangents))
    return jax.jvp(call.tangent, primals, tangents)


def _tangent_transpose(cotangent: Any, *arrays: Any, call: _Call) -> list[Any]:
    half = len(arrays) // 2
    primals = arrays[:half]
    found: list[Any] = [None] * len(arrays)
    if not isinstance(cotangent, ad.Zero):
        for i, value in enumerate(call.pull_back(primals, cotangent)):
            if ad.is_undefined_primal(arrays[half + i]):
                found[half + i] = value
    return found


def _compute_batched(arrays: tuple[Array, ...], axes: tuple[Any, ...], *, call: _Call) -> tuple[Array, int]:
    """Map over images by making a larger batch of them; over anything else by the plain formula."""
    images = call.kernel.images
    if any(axis is not None for axis in axes[images:]):
        return jax.vmap(call.plain, in_axes=axes)(*arrays), 0
    size = next(array.shape[axis] for array, axis in zip(arrays, axes, strict=True) if axis is not None)
    first = [_to_front(array, axis, size) for array, axis in zip(arrays[:images], axes, strict=False)]
    batch = first[0].shape[1]
    flat = [array.reshape(size * batch, *array.shape[2:]) for array in first]
    result = _compute_p.bind(*flat, *arrays[images:], call=call)
    return result.reshape(size, batch, *result.shape[1:]), 0


def _tangent_batched(arrays: tuple[Array, ...], axes: tuple[Any, ...], *, call: _Call) -> tuple[Array, int]:
    size = next(array.shape[axis] for array, axis in zip(arrays, axes, strict=True) if axis is not None)
    first = [_to_front(array, axis, size) for array, axis in zip(arrays, axes, strict=True)]
    return _tangent_p.bind(*first, call=call._replace(vmaps=call.vmaps + 1)), 0


def _to_front(array: Array, axis: int | None, size: int) -> Array:
    return jnp.broadcast_to(array, (size, *array.shape)) if axis is None else jnp.moveaxis(array, axis, 0)


def _compute_lowering(context: Any, *arrays: Any, call: _Call) -> Any:
    # Within `jax.shard_map` and `jax.pmap` XLA divides nothing, and the context has no number of devices.
    devices = getattr(context.module_context.axis_context, "num_devices", None) or 1
    function = call.compute if devices == 1 else call.plain
    return mlir.lower_fun(function, multiple_results=False)(context, *arrays)


for _primitive, _evaluate in ((_compute_p, _Call.compute), (_tangent_p, _Call.tangent)):

    @_primitive.def_impl
    def _run(*arrays: Any, call: _Call, evaluate: Function = _evaluate) -> Any:
        return jax.jit(partial(evaluate, call))(*arrays)


_compute_p.def_abstract_eval(_compute_shape)
_tangent_p.def_abstract_eval(_tangent_shape)
ad.primitive_jvps[_compute_p] = _compute_jvp
ad.primitive_jvps[_tangent_p] = _tangent_jvp
ad.primitive_transposes[_tangent_p] = _tangent_transpose
batching.primitive_batchers[_compute_p] = _compute_batched
batching.primitive_batchers[_tangent_p] = _tangent_batched
mlir.register_lowering(_compute_p, _compute_lowering)
mlir.register_lowering(_tangent_p, mlir.lower_fun(lambda *arrays, call: call.tangent(*arrays), multiple_results=False))
