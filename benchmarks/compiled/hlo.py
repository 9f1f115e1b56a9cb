"""Reads the text of a compiled program: its scheduled instructions, and what is in each fusion.

The grammar is that of XLA's HLO text. Shapes have layouts such as `bf16[8,1370,384]{2,0,1:T(8,128)(2,1)S(1)}`: the
axes from minor to major, the tiles that the array is padded to, and the memory space, which is 0 (device memory) if it
is not written and 1 for the memory on the chip.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple


class Shape(NamedTuple):
    """An array's type, layout and place.

    Attributes:
        dtype: HLO's name, such as "bf16".
        dims: the sizes of the axes.
        order: the axes from minor to major.
        tile: the tile of the minor axes, minor axis last; () if there is none.
        space: 0 for device memory, 1 for memory on the chip; others are small.
    """

    dtype: str
    dims: tuple[int, ...]
    order: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    space: int = 0

    @property
    def bytes(self) -> int:
        """The bytes of the numbers."""
        return math.ceil(math.prod(self.dims) * _bits(self.dtype) / 8)

    @property
    def padded_bytes(self) -> int:
        """The bytes that the array occupies: the minor axes are padded to whole tiles."""
        sizes = [self.dims[axis] for axis in reversed(self.order)] or list(self.dims)
        sizes = [1] * (len(self.tile) - len(sizes)) + sizes
        for place, side in enumerate(reversed(self.tile), 1):
            sizes[-place] += -sizes[-place] % side
        return math.ceil(math.prod(sizes) * _bits(self.dtype) / 8)


@dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: its name, without %.
        opcode: what it does, such as "fusion".
        shapes: the arrays of its result; those of a tuple one after another.
        operands: the names of its operands.
        attributes: the rest of the line.
        is_root: whether the computation returns it.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool = False
    literal: str = ""

    @cached_property
    def op_name(self) -> str:
        """Where jax traced it: scopes and primitive, such as "jit(f)/backbone/layer_0/mlp/dot_general"."""
        found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
        return found[1].replace("\\'", "'") if found else ""

    @cached_property
    def cycles(self) -> int | None:
        """The compiler's estimate of one execution."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
        return int(found[1]) if found else None

    @cached_property
    def called(self) -> tuple[str, ...]:
        """The names of the computations that a fusion, call or asynchronous start runs."""
        return tuple(re.findall(r"\b(?:calls|to_apply)=%([\w.\-]+)", self.attributes))

    @cached_property
    def custom_call_target(self) -> str:
        """The function that a custom call calls."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found[1] if found else ""

    def attribute(self, name: str) -> tuple[str, ...]:
        """Return the names of computations in an attribute such as `body=%name` or `branch_computations={%a, %b}`."""
        found = re.search(rf"\b{name}=(?:%([\w.\-]+)|\{{([^}}]*)\}})", self.attributes)
        return tuple(re.findall(r"[\w.\-]+", found[1] or found[2])) if found else ()


@dataclass(frozen=True)
class Computation:
    """A list of instructions, in the order of the schedule."""

    name: str
    instructions: list[Instruction] = field(default_factory=list)

    @cached_property
    def by_name(self) -> dict[str, Instruction]:
        """The instructions by their names."""
        return {instruction.name: instruction for instruction in self.instructions}

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """The instructions that use each name."""
        found: dict[str, list[Instruction]] = {}
        for instruction in self.instructions:
            for name in dict.fromkeys(instruction.operands):
                found.setdefault(name, []).append(instruction)
        return found

    @property
    def root(self) -> Instruction:
        """The instruction that is returned."""
        return next((i for i in self.instructions if i.is_root), self.instructions[-1])


@dataclass(frozen=True)
class Module:
    """A compiled program."""

    computations: dict[str, Computation]
    entry: Computation

    def inside(self, instruction: Instruction) -> Iterator[Instruction]:
        """Yield what a fusion consists of, fusions within it included. Of others, yield the instruction itself."""
        if instruction.opcode not in ("fusion", "async-start", "call"):
            yield instruction
            return
        for name in instruction.called:
            for inner in self.computations[name].instructions:
                yield from self.inside(inner)


_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_SHAPE = re.compile(r"\b([a-z]\w*)\[([^\]]*)\](?:\{([^}]*)\})?")


def parse(text: str) -> Module:
    """Return the program.

    Raises:
        ValueError: the text has no entry computation, or is not scheduled.
    """
    if "is_scheduled=true" not in text:
        raise ValueError("the program is not scheduled: is this the text of a compiled one?")
    computations: dict[str, Computation] = {}
    entry = current = None
    for line in text.splitlines():
        if begin := _COMPUTATION.match(line):
            current = computations[begin[2]] = Computation(begin[2])
            entry = current if begin[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            current.instructions.append(_instruction(found[2], re.sub(r"/\*.*?\*/", "", found[3]), bool(found[1])))
    if entry is None:
        raise ValueError("the program has no entry computation")
    return Module(computations, entry)


def shapes(text: str) -> tuple[Shape, ...]:
    """Return the arrays of a shape's text, those of a tuple one after another."""
    return tuple(_shape(*found.groups()) for found in _SHAPE.finditer(text))


def _instruction(name: str, text: str, is_root: bool) -> Instruction:
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    opcode, _, rest = text[end:].lstrip().partition("(")
    close = _closing("(" + rest, 0) - 2
    operands, attributes = rest[:close], rest[close + 1 :]
    return Instruction(
        name, opcode, shapes(text[:end]), tuple(re.findall(r"%([\w.\-]+)", operands)), attributes, is_root, operands
    )


def _closing(text: str, start: int) -> int:
    """Return the place after the bracket that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place + 1
    raise ValueError(f"a bracket is not closed: {text[:80]}")


def _shape(dtype: str, dims: str, layout: str | None) -> Shape:
    order, _, rest = (layout or "").partition(":")
    tile, space = re.search(r"T\(([\d,]+)\)", rest), re.search(r"S\((\d+)\)", rest)
    return Shape(
        dtype,
        tuple(int(size) for size in re.findall(r"\d+", dims)),
        tuple(int(axis) for axis in order.split(",") if axis),
        tuple(int(side) for side in tile[1].split(",")) if tile else (),
        int(space[1]) if space else 0,
    )


def _bits(dtype: str) -> int:
    found = re.match(r"[a-z]+(\d+)", dtype)
    return int(found[1]) if found else {"pred": 8}.get(dtype, 0)


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """Return how often the body of a `while` runs, or None if that is not known.

    The compiler writes it into the loop, or it is read from the condition: a counter, which starts from a constant and
    grows by one, is compared with a constant.
    """
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes):
        return int(known[1])
    condition = module.computations[loop.attribute("condition")[0]]
    compare = next((i for i in module.inside(condition.root) if i.opcode == "compare"), None)
    if compare is None or "direction=LT" not in compare.attributes:
        return None
    within = condition.by_name if compare.name in condition.by_name else {}
    counter, limit = (within.get(name) for name in compare.operands)
    if counter is None or limit is None or counter.opcode != "get-tuple-element":
        return None
    start_tuple = computation.by_name[loop.operands[0]]
    index = int(re.search(r"index=(\d+)", counter.attributes)[1])
    start = _constant(computation, start_tuple.operands[index]) if start_tuple.opcode == "tuple" else None
    if limit.opcode == "get-tuple-element" and start_tuple.opcode == "tuple":
        place = int(re.search(r"index=(\d+)", limit.attributes)[1])
        end = _constant(computation, start_tuple.operands[place])
    else:
        end = _constant(condition, limit.name)
    return None if start is None or end is None else max(end - start, 0)


def _constant(computation: Computation, name: str) -> int | None:
    instruction = computation.by_name.get(name)
    while instruction is not None and instruction.opcode in ("copy", "bitcast"):
        instruction = computation.by_name.get(instruction.operands[0])
    if instruction is None or instruction.opcode != "constant" or not re.fullmatch(r"-?\d+", instruction.literal):
        return None
    return int(instruction.literal)
