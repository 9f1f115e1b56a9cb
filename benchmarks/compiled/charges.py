"""Charges Pallas kernels, of which the compiler says nothing, by one rule for everyone; and counts arithmetic.

The rule: a kernel takes the time of its products at half the peak, every dimension of them padded to the matrix unit,
plus that of its exponentials (and logarithms, roots, tangents and so on) at the vector unit's rate, one for each
number of a padded 8x128 tile; but at least the time of its bytes. Its bytes are those of its blocks, wherever they are:
a block is fetched, or written, whenever the grid comes to another one. Other elementwise operations are not charged;
their number is counted. Of two branches the dearer one counts, in every step of the grid.
Products of float32 at the highest precision count six times, and three times at high, because the unit multiplies
bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
from jax.extend.core import jaxpr_as_fun

from .targets import Chip

_TRANSCENDENTAL = frozenset((
    "exp", "exp2", "expm1", "log", "log1p", "logistic", "tanh", "sin", "cos", "tan", "erf", "erfc", "erf_inv",
    "pow", "rsqrt", "sqrt", "cbrt", "atan2", "sinh", "cosh",
))  # fmt: skip
_ELEMENTWISE = frozenset((
    "add", "sub", "mul", "div", "rem", "neg", "abs", "sign", "max", "min", "floor", "ceil", "round", "clamp",
    "select_n", "convert_element_type", "integer_pow", "square", "eq", "ne", "lt", "le", "gt", "ge", "and",
    "or", "not", "xor", "reduce_sum", "reduce_max", "reduce_min", "cumsum", "iota", "shift_left",
    "shift_right_logical",
))  # fmt: skip
_PASSES = {"HIGHEST": 6, "HIGH": 3}


class Work(NamedTuple):
    """What a function computes.

    Attributes:
        flop: operations of matrix products and convolutions.
        padded_flop: the same, as many as a matrix unit makes of them: padded, and in as many passes as it needs.
        transcendental: exponentials and the like, in numbers of padded tiles.
        elementwise: other operations on each number: sums, products, comparisons, conversions, reductions.
        unknown_loops: loops whose length is not known; they count once.
    """

    flop: int = 0
    padded_flop: int = 0
    transcendental: int = 0
    elementwise: int = 0
    unknown_loops: int = 0

    def plus(self, other: Work, times: int = 1) -> Work:
        """Return the sum of this work and that of `times` executions of another."""
        return Work(*(a + b * times for a, b in zip(self, other, strict=True)))


@dataclass(frozen=True)
class Charge:
    """What one call of a Pallas kernel is charged.

    Attributes:
        name: the kernel's name.
        work: what it computes.
        operands: the shape of each operand and of each result, operands first.
        moved: the bytes that are moved between device memory and chip for each of them.
        steps: how many steps the grid has.
    """

    name: str
    work: Work
    operands: tuple[tuple[int, ...], ...]
    moved: tuple[int, ...]
    steps: int

    def cycles(self, chip: Chip, moved: float) -> float:
        """Return the cycles of one call that moves so many bytes."""
        computing = chip.cycles_of_flop(self.work.padded_flop) * 2 + self.work.transcendental / chip.vector_rate
        return max(computing, chip.cycles_of_bytes(moved))


@contextmanager
def recorded(chip: Chip) -> Iterator[list[Charge]]:
    """Yield a list to which the charge of every Pallas kernel is added that is traced or lowered meanwhile.

    Kernels may come into a program when it is lowered, so its jaxpr does not show all of them.
    """
    found: list[Charge] = []
    primitive = _pallas_call()
    bind = primitive.bind

    def recording(*arrays: Any, **params: Any) -> Any:
        found.append(charge(params, [jax.typeof(array) for array in arrays], chip.matrix_unit))
        return bind(*arrays, **params)

    jax.clear_caches()  # what is traced already would not be traced again
    with mock.patch.object(primitive, "bind", recording):
        yield found


def _pallas_call() -> Any:
    from jax.experimental import pallas as pl

    def kernel(x_ref: Any, out_ref: Any) -> None:
        out_ref[...] = x_ref[...]

    shape = jax.ShapeDtypeStruct((8, 128), np.float32)
    return jax.make_jaxpr(pl.pallas_call(kernel, out_shape=shape))(shape).eqns[0].primitive


def charge(params: dict[str, Any], operands: list[Any], unit: int) -> Charge:
    """Return the charge of a Pallas call.

    Args:
        params: the params of jax's primitive.
        operands: the types of its operands.
        unit: the number of rows and columns of the matrix unit.
    """
    grid = params["grid_mapping"]
    if grid.num_dynamic_grid_bounds:
        raise ValueError(f"the grid of the Pallas kernel {params['name']} is not known when it is compiled")
    steps = math.prod(grid.grid)
    results = list(params["out_avals"])
    # Operands without blocks come first: they are copied once.
    moved = [_bytes(array.shape, array.dtype) for array in operands[: len(operands) - grid.num_inputs]]
    moved += [_moved(mapping, grid.grid) for mapping in grid.block_mappings]
    return Charge(
        params["name"] or "",
        Work().plus(work(params["jaxpr"], unit), steps),
        tuple(tuple(array.shape) for array in [*operands, *results]),
        tuple(moved),
        steps,
    )


def _moved(mapping: Any, grid: tuple[int, ...]) -> int:
    """Return the bytes of one operand that are moved. What is left in device memory is taken to be moved once."""
    array = mapping.array_aval
    if str(getattr(mapping.transformed_block_aval, "memory_space", "")).lower() in ("any", "hbm"):
        return _bytes(array.shape, array.dtype)
    sides = [getattr(side, "block_size", side) for side in mapping.block_shape]
    block = [1 if not isinstance(side, int) else min(side, full) for side, full in zip(sides, array.shape, strict=True)]
    index_map = mapping.index_map_jaxpr
    steps = math.prod(grid)
    if len(index_map.in_avals) == len(grid):
        grids = [axis.reshape(-1) for axis in np.indices(grid, np.int32)]
        if not grids:
            fetches = 1
        else:
            with jax.ensure_compile_time_eval():
                places = np.stack(
                    [np.broadcast_to(place, steps) for place in jax.vmap(jaxpr_as_fun(index_map))(*grids)]
                )
            fetches = 1 + int((np.diff(places, axis=1) != 0).any(0).sum())
    else:  # the place depends on numbers that are known when the kernel runs
        fetches = steps
    return fetches * _bytes(tuple(block), array.dtype)


def _bytes(shape: tuple[int, ...], dtype: Any) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


def work(jaxpr: Any, unit: int) -> Work:
    """Return what a jaxpr computes, with everything that it calls."""
    total = Work()
    for equation in jaxpr.eqns:
        total = total.plus(_work_of(equation, unit))
    return total


def _work_of(equation: Any, unit: int) -> Work:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _product(equation, unit)
    if name == "conv_general_dilated":
        return _convolution(equation, unit)
    if name in _TRANSCENDENTAL:
        return Work(transcendental=_numbers(equation.outvars[0]))
    if name in _ELEMENTWISE:
        return Work(elementwise=max(map(_numbers, (*equation.invars, *equation.outvars))))
    inner = [work(jaxpr, unit) for jaxpr in _jaxprs(params)]
    if not inner:
        return Work()
    if name == "cond":
        return max(inner, key=lambda each: (each.padded_flop, each.transcendental, each.flop))
    if name == "pallas_call":
        return Work().plus(work(params["jaxpr"], unit), math.prod(params["grid_mapping"].grid))
    times = 1
    if name == "scan":
        times = params["length"]
    elif name == "while":
        length = _while_length(equation)
        times = 1 if length is None else length
        inner = [work(params["body_jaxpr"].jaxpr, unit)]
        if length is None and any(inner[0]):
            return inner[0].plus(Work(unknown_loops=1))
    elif name in ("custom_vjp_call", "custom_jvp_call", "custom_vjp_call_jaxpr"):
        inner = inner[:1]
    total = Work()
    for each in inner:
        total = total.plus(each, times)
    return total


def _jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            each = getattr(each, "jaxpr", each)
            if hasattr(each, "eqns"):
                yield each


def _product(equation: Any, unit: int) -> Work:
    left, right = (operand.aval for operand in equation.invars[:2])
    (left_sum, right_sum), (left_batch, right_batch) = equation.params["dimension_numbers"]
    batch = math.prod(left.shape[axis] for axis in left_batch)
    summed = math.prod(left.shape[axis] for axis in left_sum)
    rows = math.prod(left.shape) // max(batch * summed, 1)
    columns = math.prod(size for axis, size in enumerate(right.shape) if axis not in (*right_sum, *right_batch))
    return _multiplied(batch, rows, summed, columns, unit, _passes(equation, left.dtype))


def _convolution(equation: Any, unit: int) -> Work:
    numbers = equation.params["dimension_numbers"]
    out, kernel = equation.outvars[0].aval.shape, equation.invars[1].aval
    features, channels, *window = (kernel.shape[axis] for axis in numbers.rhs_spec)
    rows = math.prod(out) // max(out[numbers.out_spec[1]], 1)
    return _multiplied(1, rows, channels * math.prod(window), features, unit, _passes(equation, kernel.dtype))


def _multiplied(batch: int, rows: int, summed: int, columns: int, unit: int, passes: int) -> Work:
    padded = [size + -size % unit for size in (rows, summed, columns)]
    return Work(2 * batch * rows * summed * columns, 2 * batch * math.prod(padded) * passes)


def _passes(equation: Any, dtype: Any) -> int:
    if np.dtype(dtype).itemsize < 4:
        return 1
    precision = equation.params.get("precision")
    precision = precision[0] if isinstance(precision, tuple) else precision
    return _PASSES.get(getattr(precision, "name", ""), 1)


def _numbers(var: Any) -> int:
    """Return how many numbers of whole 8x128 tiles an array has; a scalar is not the vector unit's."""
    shape = getattr(var.aval, "shape", ())
    if not shape:
        return 0
    sizes = [1] * (2 - len(shape)) + list(shape)
    return math.prod((*sizes[:-2], sizes[-2] + -sizes[-2] % 8, sizes[-1] + -sizes[-1] % 128))


def _while_length(equation: Any) -> int | None:
    """Return how often a loop runs whose condition compares a counter, from a known start, with a known end."""
    params = equation.params
    condition = params["cond_jaxpr"].jaxpr
    if len(condition.eqns) != 1 or condition.eqns[0].primitive.name != "lt":
        return None
    constants = params["cond_nconsts"]
    initial = equation.invars[constants + params["body_nconsts"] :]

    def value(var: Any) -> int | None:
        if hasattr(var, "val"):
            return int(var.val)
        place = condition.invars.index(var)
        outer = equation.invars[place] if place < constants else initial[place - constants]
        return int(outer.val) if hasattr(outer, "val") else None

    start, end = (value(var) for var in condition.eqns[0].invars)
    return None if start is None or end is None else max(end - start, 0)
