"""What each kernel of a compiled program costs, and the sums by part of the network and by kind."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from .charges import Charge
from .hlo import Computation, Instruction, Module, Shape, trip_count
from .targets import Chip

# They name an array or a part of it; nothing is scheduled for them.
_FREE = frozenset((
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
    "opt-barrier",
))  # fmt: skip
_FREE_CUSTOM_CALLS = frozenset(("ConcatBitcast", "AllocateBuffer", "Sharding", "SPMDFullToShardShape"))
_PALLAS = "tpu_custom_call"

# (kind, opcodes): a kernel is of the first kind of which it has an opcode.
_KINDS: tuple[tuple[str, frozenset[str]], ...] = (
    ("collectives", frozenset(("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter"))),
    ("gathers", frozenset(("gather", "scatter", "dynamic-gather", "sort"))),
    ("custom calls", frozenset(("custom-call",))),
    ("reductions", frozenset(("reduce", "reduce-window"))),
    ("layout copies", frozenset(("copy", "transpose"))),
    ("slices, pads, joins", frozenset(("slice", "dynamic-slice", "dynamic-update-slice", "pad", "concatenate"))),
)
# What may come with a copy without making an elementwise kernel of it.
_MOVING = _FREE | frozenset((
    "copy", "transpose", "reshape", "slice", "dynamic-slice", "dynamic-update-slice", "pad", "concatenate",
    "broadcast", "iota", "reverse",
))  # fmt: skip
KINDS = (
    "products", "convolutions", "custom calls", "gathers", "reductions", "elementwise", "layout copies",
    "slices, pads, joins", "to and from the chip", "collectives",
)  # fmt: skip

# (part, pattern of a segment of the path): the first that is found.
_PARTS = (
    ("head", r"head|depth_estimation_head"),
    ("neck", r"neck|fusion_\d+|fusion_stage|reassemble_stage"),
    ("embeddings", r"(patch_)?embeddings?"),
    ("attention", r"attention|self_attention"),
    ("MLP", r"mlp"),
    ("norms, residuals", r"norm\d?|layernorm|ln\d?|layer_?norm.*|layer_scale\d?|layer_\d+|backbone"),
)
PARTS = (*(name for name, _ in _PARTS), "other")


@dataclass
class Kernel:
    """A kernel, or several that differ in their layer only. Bytes and cycles are those of all executions.

    Attributes:
        name: the instruction's name.
        part: the part of the network.
        kind: the kind of operation.
        op: the scopes and the operation in jax; the layer's number is N.
        shape: the first array of the result.
        count: how often it runs.
        cycles: the compiler's estimate.
        charged: the cycles that a kernel without an estimate is charged: a Pallas call by the rule of `charges`, a
            gather or whatever else the time of its bytes, but not what moves beside other kernels.
        bytes: the bytes moved from and to device memory.
        padded_bytes: the same of arrays padded to tiles, as they are there.
        charged_bytes: the bytes that a Pallas call is charged; they are not in `bytes`.
        charged_padded_bytes: the same of padded arrays.
        elementwise: the elementwise operations of a Pallas call, which nothing is charged for.
    """

    name: str
    part: str
    kind: str
    op: str
    shape: str
    count: int = 0
    cycles: float = 0
    charged: float = 0
    bytes: int = 0
    padded_bytes: int = 0
    charged_bytes: int = 0
    charged_padded_bytes: int = 0
    elementwise: int = 0

    def add(self, other: Kernel) -> None:
        """Add the figures of another one."""
        for figure in ("count", *FIGURES):
            setattr(self, figure, getattr(self, figure) + getattr(other, figure))

    @property
    def total_cycles(self) -> float:
        """Estimated or charged cycles."""
        return self.cycles + self.charged


FIGURES = ("cycles", "charged", "bytes", "padded_bytes", "charged_bytes", "charged_padded_bytes", "elementwise")


@dataclass(frozen=True)
class Account:
    """The kernels of a program.

    Attributes:
        kernels: one for each scheduled instruction.
        unknown_loops: the names of loops whose length is not known; their body counts once.
        uncharged: the targets of custom calls that nothing is known of.
    """

    kernels: list[Kernel]
    unknown_loops: list[str]
    uncharged: list[str]

    def summary(self, most: int = 40) -> dict[str, Any]:
        """Return the sums as JSON has them: in total, by part, by kind, by both, and the dearest kernels."""
        alike: dict[Any, Kernel] = {}
        for kernel in self.kernels:
            key = (kernel.part, kernel.kind, kernel.op, kernel.shape)
            alike.setdefault(key, Kernel(kernel.name, *key)).add(kernel)
        dearest = sorted(alike.values(), key=lambda each: (-each.total_cycles, -each.bytes, each.op))
        return {
            "total": _sum(self.kernels),
            "parts": _sums(self.kernels, PARTS, lambda each: each.part),
            "kinds": _sums(self.kernels, KINDS, lambda each: each.kind),
            "parts_and_kinds": _sums(
                self.kernels, [f"{p}: {k}" for p in PARTS for k in KINDS], lambda each: f"{each.part}: {each.kind}"
            ),
            "kernels": [_rounded(asdict(each)) for each in dearest[:most]],
            "unknown_loops": self.unknown_loops,
            "uncharged": self.uncharged,
        }


def _sum(kernels: Iterable[Kernel]) -> dict[str, Any]:
    total = Kernel("", "", "", "", "")
    for kernel in kernels:
        total.add(kernel)
    return _rounded({name: getattr(total, name) for name in ("count", *FIGURES)})


def _sums(kernels: list[Kernel], names: Iterable[str], name_of: Any) -> dict[str, Any]:
    found = {name: [kernel for kernel in kernels if name_of(kernel) == name] for name in names}
    return {name: _sum(of_name) for name, of_name in found.items() if of_name}


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value) if isinstance(value, float) else value for name, value in row.items()}


def account(module: Module, chip: Chip, charges: list[Charge]) -> Account:
    """Return what the kernels of a program cost.

    Args:
        module: the compiled program.
        chip: what it was compiled for.
        charges: what the Pallas calls in it are charged, found by the shapes of their operands and results.
    """
    found = Account([], [], [])
    for computation, instruction, times in _scheduled(module, module.entry, 1, found.unknown_loops):
        if instruction.opcode == "custom-call" and instruction.custom_call_target in _FREE_CUSTOM_CALLS:
            continue
        found.kernels.append(_kernel(module, computation, instruction, times, chip, charges, found.uncharged))
    return found


def _scheduled(
    module: Module, computation: Computation, times: int, unknown_loops: list[str]
) -> Iterator[tuple[Computation, Instruction, int]]:
    """Yield the instructions that are kernels, with how often they run. Of branches, the one with most cycles runs."""
    for instruction in computation.instructions:
        opcode = instruction.opcode
        if opcode in _FREE or opcode.endswith(("-done", "-update")):
            continue
        if opcode == "while":
            length = trip_count(module, computation, instruction)
            if length is None:
                unknown_loops.append(instruction.name)
            body = module.computations[instruction.attribute("body")[0]]
            yield from _scheduled(module, body, times * (1 if length is None else length), unknown_loops)
        elif opcode == "conditional":
            names = instruction.attribute("branch_computations") or (
                *instruction.attribute("true_computation"),
                *instruction.attribute("false_computation"),
            )
            branches = [list(_scheduled(module, module.computations[name], times, unknown_loops)) for name in names]
            yield from max(branches, key=lambda branch: sum((i.cycles or 0) * t for _, i, t in branch))
        elif opcode == "call":
            for name in instruction.called:
                yield from _scheduled(module, module.computations[name], times, unknown_loops)
        else:
            yield computation, instruction, times


def _kernel(
    module: Module,
    computation: Computation,
    instruction: Instruction,
    times: int,
    chip: Chip,
    charges: list[Charge],
    uncharged: list[str],
) -> Kernel:
    path = _path(module, computation, instruction)
    kind = kind_of(module, instruction)
    shape = next(iter(instruction.shapes), Shape("token", ()))
    kernel = Kernel(
        instruction.name,
        part_of(path),
        kind,
        re.sub(r"\b(layers?)([_/.])?\d+\b", r"\1\2N", path) or instruction.opcode,
        f"{shape.dtype}[{','.join(map(str, shape.dims))}]",
        times,
        (instruction.cycles or 0) * times,
    )
    charge = _charge_of(instruction, computation, charges)
    if charge is None:
        kernel.bytes, kernel.padded_bytes = (count * times for count in _bytes(computation, instruction))
        if instruction.opcode == "custom-call":
            uncharged.append(f"{instruction.custom_call_target} ({instruction.name})")
        if instruction.cycles is None and not instruction.opcode.endswith("-start"):
            kernel.charged = chip.cycles_of_bytes(kernel.padded_bytes)
        return kernel
    arrays = [shape for name in instruction.operands for shape in computation.by_name[name].shapes]
    everywhere = 0
    for array, moved in zip((*arrays, *instruction.shapes), charge.moved, strict=True):
        padded = round(moved * array.padded_bytes / max(array.bytes, 1))
        everywhere += padded
        if array.space == 0:
            kernel.charged_bytes += moved * times
            kernel.charged_padded_bytes += padded * times
    kernel.charged = charge.cycles(chip, everywhere) * times
    kernel.elementwise = charge.work.elementwise * times
    return kernel


def _charge_of(instruction: Instruction, computation: Computation, charges: list[Charge]) -> Charge | None:
    """Return the charge of a Pallas call: the one whose operands and results have its shapes; of several, by name."""
    if instruction.custom_call_target != _PALLAS:
        return None
    operands = [shape.dims for name in instruction.operands for shape in computation.by_name[name].shapes]
    wanted = (*operands, *(shape.dims for shape in instruction.shapes))
    fitting = [charge for charge in charges if charge.operands == wanted]
    named = [charge for charge in fitting if charge.name and instruction.name.startswith(charge.name)]
    # Different kernels with the same shapes and without a name: the dearest.
    return max(named or fitting, key=lambda charge: charge.work.padded_flop + sum(charge.moved), default=None)


def _bytes(computation: Computation, instruction: Instruction) -> tuple[int, int]:
    """Return the bytes in device memory, and those padded to tiles, of an instruction's operands and results.

    An array that is two operands counts once. An asynchronous slice reads as much as it returns; everything else that
    reads or writes a part of an array is charged the whole array.
    """
    operands = [computation.by_name[name] for name in dict.fromkeys(instruction.operands)]
    read = [shape for operand in operands for shape in operand.shapes]
    written = list(instruction.shapes)
    if instruction.opcode.endswith("-start"):
        done = [user for user in computation.users.get(instruction.name, ()) if user.opcode.endswith("-done")]
        written = [shape for user in done for shape in user.shapes]
        if "slice" in instruction.opcode and "update" not in instruction.opcode:
            read = [shape._replace(space=source.space) for shape, source in zip(written, read, strict=False)]
    counted = [shape for shape in (*read, *written) if shape.space == 0]
    return sum(shape.bytes for shape in counted), sum(shape.padded_bytes for shape in counted)


def kind_of(module: Module, instruction: Instruction) -> str:
    """Return the kind of a kernel, one of `KINDS`."""
    opcode = instruction.opcode
    inside = list(module.inside(instruction))
    if opcode.endswith("-start") and opcode.removesuffix("-start") in ("copy", "slice", "dynamic-slice", "async"):
        return "to and from the chip"
    multiplied = [each for each in inside if each.opcode in ("convolution", "dot")]
    if multiplied:
        return "convolutions" if any(_is_convolution(each) for each in multiplied) else "products"
    opcodes = Counter(each.opcode.removesuffix("-start") for each in inside)
    for kind, of_kind in _KINDS:
        if of_kind & set(opcodes) and (kind not in ("layout copies", "slices, pads, joins") or set(opcodes) <= _MOVING):
            return kind
    return "layout copies" if set(opcodes) <= _FREE | {"reshape"} else "elementwise"


def _is_convolution(instruction: Instruction) -> bool:
    """Return whether it was a convolution in jax. The compiler writes products as convolutions too."""
    if instruction.op_name:
        return "conv_general_dilated" in instruction.op_name
    window = re.search(r"window=\{size=([\dx]+)", instruction.attributes)
    return instruction.opcode == "convolution" and bool(window) and set(window[1]) - set("1x") != set()


def part_of(path: str) -> str:
    """Return the part of the network that a path of scopes belongs to, one of `PARTS`."""
    segments = re.split(r"[/\[\]']+", path)
    for part, pattern in _PARTS:
        if any(re.fullmatch(pattern, segment) for segment in segments):
            return part
    return "other"


def _path(module: Module, computation: Computation, instruction: Instruction, depth: int = 8) -> str:
    """Return the path of scopes of an instruction; without one, that of what is in it, of its operands or its users."""
    if instruction.op_name:
        return instruction.op_name
    if instruction.opcode in ("fusion", "async-start"):
        inside = [each.op_name for each in module.inside(instruction) if each.op_name]
        if inside:
            return Counter(inside).most_common(1)[0][0]
    if depth == 0:
        return ""
    for name in instruction.operands:
        operand = computation.by_name[name]
        if operand.opcode != "constant" and (path := _path(module, computation, operand, depth - 1)):
            return path
    for user in computation.users.get(instruction.name, ()):
        if user.op_name:
            return user.op_name
    return ""
