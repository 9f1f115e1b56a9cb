"""The pickle inside a PyTorch file, interpreted without running anything.

Of the pickle language this knows the opcodes that `torch.save` emits with pickle_protocol 2 to 5; of Python's names,
those of `torch_names`. A value that another name makes, such as a path or a training script's settings, is an empty
placeholder. Nothing here walks nested data, so that self-reference and depth do no harm.

Opcodes and their arguments: CPython, Lib/pickletools.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from dajax import limits
from dajax.errors import WeightsError, shown
from dajax.weights.torch_files.torch_names import (
    BYTES,
    GLOBALS,
    LIST,
    NAMESPACE,
    NUMBER,
    OBJECT,
    SET,
    STORAGES,
    Foreign,
    Global,
    OrderedDict,
    Placeholder,
    Storage,
)

# Stands in a dict for all its keys that are not strings.
OTHER_KEY = Placeholder("a key that is not a string")
# So much is kept of names that are not in the table: they are only shown.
_SHOWN_NAME, _SHOWN_NAMES = 100, 20


class Pickled(NamedTuple):
    """What a pickle describes.

    Attributes:
        value: dicts, strings, tuples, `Tensor`, `Placeholder` and similar values.
        foreign: the first names of Python in the pickle that are not in the table.
    """

    value: Any
    foreign: list[str]


def interpret(data: bytes, path: object) -> Pickled:
    """Return what a pickle describes.

    Args:
        data: the pickle.
        path: of the file, for messages.

    Raises:
        WeightsError: the pickle is damaged or beyond the bounds, or it uses names of the table as torch.save never
            does.
    """
    machine = _Machine(data, path)
    for _ in range(limits.MAX_TORCH_OPCODES):
        code = machine.take(1)
        if code == b".":
            return Pickled(machine.result(), list(machine.foreign))
        handler = _HANDLERS.get(code)
        if handler is None:
            raise machine.failure(f"opcode {code!r} at byte {machine.position - 1} is none that torch.save emits")
        handler(machine)
    raise machine.failure(f"more than {limits.MAX_TORCH_OPCODES:,} opcodes: far more than any checkpoint's")


class _Machine:
    """Stack, marks and memo of the pickle language."""

    __slots__ = ("data", "foreign", "marks", "memo", "path", "position", "stack")

    def __init__(self, data: bytes, path: object) -> None:
        self.data, self.path, self.position = data, path, 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.foreign: dict[str, Foreign] = {}
        if self.take(1) != b"\x80" or not 2 <= self.number(1) <= 5:
            raise self.failure("a pickle of protocol 2, 3, 4 or 5 was expected")

    def failure(self, what: str) -> WeightsError:
        return WeightsError(f"{self.path}: data.pkl: {what}")

    def take(self, count: int) -> bytes:
        found = self.data[self.position : self.position + count]
        if len(found) < count:
            raise self.failure(f"cut off: {count:,} bytes wanted at byte {self.position}, {len(found):,} are left")
        self.position += count
        return found

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "little")

    def text(self, raw: bytes) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.failure(f"text before byte {self.position} is not UTF-8") from None

    def line(self) -> str:
        end = self.data.find(b"\n", self.position, self.position + 200)
        if end < 0:
            raise self.failure(f"a name at byte {self.position} does not end")
        return self.text(self.take(end + 1 - self.position)[:-1])

    def push(self, value: object) -> None:
        self.stack.append(value)

    def last(self, count: int) -> list[Any]:
        """Return the items at the top of the stack, above the last mark."""
        bottom = len(self.stack) - count
        if bottom < (self.marks[-1] if self.marks else 0):
            raise self.failure(f"too little on the stack for the opcode before byte {self.position}")
        return self.stack[bottom:]

    def top(self) -> Any:
        return self.last(1)[0]

    def pop(self) -> Any:
        self.last(1)
        return self.stack.pop()

    def pop_marked(self) -> list[Any]:
        if not self.marks:
            raise self.failure(f"no mark for the opcode before byte {self.position}")
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def result(self) -> object:
        if self.position != len(self.data) or self.marks or len(self.stack) != 1:
            raise self.failure("does not end where its content ends")
        return self.stack[0]


def _find_global(m: _Machine, module: object, name: object) -> None:
    if not isinstance(module, str) or not isinstance(name, str):
        raise m.failure("a name of Python must be two strings")
    m.push(GLOBALS.get((module, name)) or _foreign(m, module, name))


def _foreign(m: _Machine, module: str, name: str) -> Foreign:
    kind = f"{module[:_SHOWN_NAME]}.{name[:_SHOWN_NAME]}"
    if len(m.foreign) < _SHOWN_NAMES:
        return m.foreign.setdefault(kind, Foreign(kind))
    return m.foreign.get(kind) or Foreign(kind)


def _stack_global(m: _Machine) -> None:
    name, module = m.pop(), m.pop()
    _find_global(m, module, name)


def _reduce(m: _Machine) -> None:
    arguments, function = m.pop(), m.pop()
    if isinstance(function, Foreign) and isinstance(arguments, tuple):
        m.push(function)
        return
    if not isinstance(function, Global) or function.build is None or not isinstance(arguments, tuple):
        raise m.failure(f"calls {_described(function)}, which is nothing to call")
    made = function.build(arguments)
    if made is None:
        raise m.failure(f"calls {_described(function)} with arguments that no file of weights has")
    m.push(made)


def _new_object(m: _Machine) -> None:
    arguments, cls = m.pop(), m.pop()
    if isinstance(cls, Foreign):
        m.push(cls)
    elif cls is NAMESPACE and arguments == ():
        m.push(OBJECT)
    else:
        raise m.failure(f"makes an instance of {_described(cls)}")


def _new_object_with_keywords(m: _Machine) -> None:
    m.pop()  # keywords, which only classes take that are not in the table
    arguments, cls = m.pop(), m.top()
    if not isinstance(cls, Foreign) or not isinstance(arguments, tuple):
        raise m.failure(f"makes an instance of {_described(cls)}")


def _build(m: _Machine) -> None:
    m.pop()  # the state: a state dict's _metadata, a training script's arguments, an array's content
    if m.top() is not OBJECT and not isinstance(m.top(), OrderedDict | Foreign):
        raise m.failure(f"sets the state of {_described(m.top())}")


def _set_items(m: _Machine, items: list[Any]) -> None:
    target = m.top()
    if isinstance(target, Foreign):
        return
    if not isinstance(target, dict) or len(items) % 2:
        raise m.failure(f"puts {len(items)} keys and values into {_described(target)}")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str):
            target[OTHER_KEY] = OTHER_KEY
        elif key in target:
            raise m.failure(f"key {shown(key)} stands twice in one dict")
        else:
            target[key] = value


def _set_item(m: _Machine) -> None:
    value, key = m.pop(), m.pop()
    _set_items(m, [key, value])


def _drop_into(container: Placeholder, pop: Callable[[_Machine], object]) -> Callable[[_Machine], None]:
    def handler(m: _Machine) -> None:
        pop(m)
        if m.top() is not container and not isinstance(m.top(), Foreign):
            raise m.failure(f"{_described(m.top())} stands where {container.kind} was expected")

    return handler


def _frozen_set(m: _Machine) -> None:
    m.pop_marked()
    m.push(SET)


def _get(m: _Machine, index: int) -> None:
    if index not in m.memo:
        raise m.failure(f"memo {index} is used before it is set")
    m.push(m.memo[index])


def _put(m: _Machine, index: int) -> None:
    m.memo[index] = m.top()


def _tuple(m: _Machine, count: int) -> None:
    m.stack[-count:] = [tuple(m.last(count))]


def _frame(m: _Machine) -> None:
    if m.number(8) > len(m.data) - m.position:
        raise m.failure("a frame is longer than the file")


def _skip(kind: Placeholder, width: int) -> Callable[[_Machine], None]:
    """Return a handler that skips bytes that no model needs; their length comes first, in `width` bytes."""

    def handler(m: _Machine) -> None:
        m.take(m.number(width))
        m.push(kind)

    return handler


def _float(m: _Machine) -> None:
    m.take(8)
    m.push(NUMBER)


def _persistent(m: _Machine) -> None:
    match m.pop():
        # The fourth argument is the device it was on, such as "cuda:0". Here the caller decides the device.
        case ("storage", Global(module=module, name=kind), str(key), str(), int(count)) if (module, kind) in STORAGES:
            m.push(Storage(kind, key, count))
        case ("storage", Foreign() as foreign, str(), str(), int()):
            m.push(foreign)
        case _:
            raise m.failure("a tensor's storage is described in an unknown way")


def _described(value: object) -> str:
    match value:
        case Global():
            return f"{value.module}.{value.name}"
        case Placeholder():
            return value.kind
        case _:
            return type(value).__name__


_HANDLERS: dict[bytes, Callable[[_Machine], None]] = {
    # Constants and numbers
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"K": lambda m: m.push(m.number(1)),
    b"M": lambda m: m.push(m.number(2)),
    b"J": lambda m: m.push(int.from_bytes(m.take(4), "little", signed=True)),
    b"\x8a": lambda m: m.push(int.from_bytes(m.take(m.number(1)), "little", signed=True)),
    b"G": _float,
    # Text and bytes
    b"X": lambda m: m.push(m.text(m.take(m.number(4)))),
    b"\x8c": lambda m: m.push(m.text(m.take(m.number(1)))),
    b"C": _skip(BYTES, 1),
    b"B": _skip(BYTES, 4),
    b"\x96": _skip(BYTES, 8),
    # Containers
    b"(": lambda m: m.marks.append(len(m.stack)),
    b")": lambda m: m.push(()),
    b"\x85": lambda m: _tuple(m, 1),
    b"\x86": lambda m: _tuple(m, 2),
    b"\x87": lambda m: _tuple(m, 3),
    b"t": lambda m: m.push(tuple(m.pop_marked())),
    b"}": lambda m: m.push({}),
    b"s": _set_item,
    b"u": lambda m: _set_items(m, m.pop_marked()),
    b"]": lambda m: m.push(LIST),
    b"a": _drop_into(LIST, _Machine.pop),
    b"e": _drop_into(LIST, _Machine.pop_marked),
    b"\x8f": lambda m: m.push(SET),
    b"\x90": _drop_into(SET, _Machine.pop_marked),
    b"\x91": _frozen_set,
    # Memo and framing
    b"q": lambda m: _put(m, m.number(1)),
    b"r": lambda m: _put(m, m.number(4)),
    b"\x94": lambda m: _put(m, len(m.memo)),
    b"h": lambda m: _get(m, m.number(1)),
    b"j": lambda m: _get(m, m.number(4)),
    b"\x95": _frame,
    # Names, calls and storages
    b"c": lambda m: _find_global(m, m.line(), m.line()),
    b"\x93": _stack_global,
    b"R": _reduce,
    b"\x81": _new_object,
    b"\x92": _new_object_with_keywords,
    b"b": _build,
    b"Q": _persistent,
}
