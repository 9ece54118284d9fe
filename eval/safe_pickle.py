"""Reads pickles of plain data without ever importing, constructing or calling what the file asks for.

Python's own unpickler, even with a restricted `find_class`, calls whatever that function returns with arguments that
the file chooses, sets attributes on it, and allocates what a length field claims. This module is instead a small
interpreter of the pickle instructions (Python 2 and 3, protocols 0 to 5) that knows plain data only:

- a named global is inert, and only the names in `pickle_values.ADMITTED` pass; any other ends the reading;
- "calling" one runs a rule of ours that checks its arguments and answers with plain data;
- a length is checked against the bytes that are there before anything is allocated, the number of instructions is
  bounded, and what the rules decode is bounded by the size of the file.

The instructions are those that the standard library's `pickletools` documents.
"""

from __future__ import annotations

import codecs
import mmap
import pickletools
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eval.pickle_values import (
    ADMITTED,
    DamagedError,
    DecodeBudget,
    Dtype,
    Global,
    PackedArray,
    RefusedError,
    call,
    is_plain_dtype_state,
    kind_of,
    printable,
)
from utils.errors import UserError

MAX_INSTRUCTIONS = 20_000_000  # a uint8 array takes about 40, so half a million images; each costs 64 bytes or so
_MAX_INTEGER_BYTES = 8
_MAX_INTEGER_DIGITS = 20


def load_plain(path: str | Path) -> object:
    """The content of a pickle file: lists, tuples, bytes, str, int, bool, None and `PackedArray`. Bytearrays and
    Python 2 strings come as bytes, numpy's bool scalars as bool.

    Raises UserError, naming the file and the byte, for a file that is missing, damaged, or asks for anything else.
    """
    try:
        with open(path, "rb") as file:
            if not file.read(1):
                raise UserError(f"{path}: the file is empty; fetch or pack it again")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return loads_plain(content, str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from error


def loads_plain(content: bytes | mmap.mmap, where: str) -> object:
    """As `load_plain`, of bytes in memory or of a mapped file; `where` names them in errors."""
    machine = _Machine(content)
    try:
        return machine.run()
    except RefusedError as error:
        raise UserError(
            f"{where}: refused at byte {machine.at}: {error}. Such a file holds lists, bytes, uint8 arrays and "
            "booleans and no code. Nothing was run; do not trust this file"
        ) from error
    except (DamagedError, IndexError, KeyError, ValueError, struct.error) as error:
        reason = error if isinstance(error, DamagedError) else "the instructions do not fit together"
        raise UserError(
            f"{where}: not a complete pickle: {reason} (byte {machine.at} of {len(content)}); fetch or pack it again"
        ) from error


class _Machine:
    """One reading of one pickle: the position, the stack, the stacks below each open mark, and the memo."""

    def __init__(self, content: bytes | mmap.mmap):
        self.content = content
        self.size = len(content)
        self.position = 0
        self.at = 0  # where the instruction being executed starts
        self.stack: list[Any] = []
        self.below_marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.budget = DecodeBudget(self.size)

    def run(self) -> object:
        for _ in range(MAX_INSTRUCTIONS):
            self.at = self.position
            opcode = self.take(1)
            if opcode == b".":
                return self.finish()
            _INSTRUCTIONS.get(opcode, _refuse)(self)
        raise RefusedError(f"more than {MAX_INSTRUCTIONS} instructions")

    def finish(self) -> object:
        value = self.stack.pop()
        if self.stack or self.below_marks:
            raise DamagedError("values are left over at its end")
        if self.position != self.size:
            raise DamagedError(f"{self.size - self.position} bytes follow its end")
        return value

    # ---------------------------------------------------------------------------------------------- reading

    def take(self, length: int) -> bytes:
        end = self.position + length
        if length < 0:
            raise DamagedError(f"a length of {length} bytes")
        if end > self.size:
            raise DamagedError(f"the file ends where {length} more bytes should follow")
        taken = self.content[self.position : end]
        self.position = end
        return taken

    def line(self) -> bytes:
        end = self.content.find(b"\n", self.position)
        if end < 0:
            raise DamagedError("the file ends inside a line")
        taken = self.content[self.position : end]
        self.position = end + 1
        return taken

    def name_line(self) -> str:
        return self.line().decode("utf-8", "replace")

    def number(self, layout: struct.Struct) -> int:
        return layout.unpack(self.take(layout.size))[0]

    # ---------------------------------------------------------------------------------------------- the stack

    def push(self, value: object) -> None:
        self.stack.append(value)

    def mark(self) -> None:
        self.below_marks.append(self.stack)
        self.stack = []

    def pop_to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below_marks.pop()
        return items

    def discard(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.discard_to_mark()

    def discard_to_mark(self) -> None:
        self.stack = self.below_marks.pop()

    def tuple_of(self, length: int) -> None:
        if len(self.stack) < length:
            raise DamagedError("a tuple has too few items")
        start = len(self.stack) - length
        self.stack[start:] = [tuple(self.stack[start:])]

    def append(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise RefusedError(f"appending to a {kind_of(self.stack[-1])}")
        self.stack[-1].extend(items)

    # ---------------------------------------------------------------------------------------------- globals and calls

    def global_from_stack(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(module, str) or not isinstance(name, str):
            raise DamagedError("a global without a name")
        self.push_global(module, name)

    def push_global(self, module: str, name: str) -> None:
        full_name = f"{module}.{name}"
        if full_name not in ADMITTED:
            raise RefusedError(f"the file tries to load {printable(full_name)}")
        self.push(Global(full_name))

    def refuse_instance(self) -> None:
        raise RefusedError(f"the file tries to load {printable(self.name_line() + '.' + self.name_line())}")

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise RefusedError(f"calling a {kind_of(function)}")
        self.push(call(function.name, arguments, self.budget))

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, PackedArray) and not target.code:
            target.fill(state)
        elif not (isinstance(target, Dtype) and is_plain_dtype_state(state)):
            raise RefusedError(f"setting the state of a {kind_of(target)}")


# ------------------------------------------------------------------------------------------------ arguments in the file

# Possessive, so that matching a long string keeps no states to return to.
_PYTHON_2_REPR = re.compile(rb"""(?:[^\\]++|\\(?:x[0-9a-f]{2}|[\\'"nrt]))*+""", re.DOTALL)
_U8, _U16, _U32, _U64, _I32 = (struct.Struct(f"<{code}") for code in "BHIQi")


def _decimal(line: bytes) -> int:
    if len(line) > _MAX_INTEGER_DIGITS:
        raise RefusedError(f"a number of {len(line)} digits")
    return int(line)


def _integer_line(machine: _Machine) -> int | bool:
    line = machine.line()
    return line == b"01" if line in (b"00", b"01") else _decimal(line)  # how protocols 0 and 1 write booleans


def _long_bytes(machine: _Machine, layout: struct.Struct) -> int:
    length = machine.number(layout)
    if length > _MAX_INTEGER_BYTES:
        raise RefusedError(f"a number of {length} bytes")
    return int.from_bytes(machine.take(length), "little", signed=True)


def _quoted_line(machine: _Machine) -> bytes:
    line = machine.line()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise DamagedError("a string without quotes")
    if not _PYTHON_2_REPR.fullmatch(line, 1, len(line) - 1):
        raise DamagedError("a string with escapes that Python 2 does not write")
    return codecs.escape_decode(line[1:-1])[0]  # as the pickle module does


def _utf8(machine: _Machine, layout: struct.Struct) -> str:
    return machine.take(machine.number(layout)).decode("utf-8", "surrogatepass")


def _protocol(machine: _Machine) -> None:
    version = machine.number(_U8)
    if version > 5:
        raise DamagedError(f"protocol {version} is not known")


def _frame(machine: _Machine) -> None:
    length = machine.number(_U64)
    if machine.position + length > machine.size:
        raise DamagedError(f"a frame of {length} bytes goes past the end")


def _memorise(machine: _Machine, index: int) -> None:
    machine.memo[index] = machine.stack[-1]


def _refuse(machine: _Machine) -> None:
    opcode = machine.content[machine.at]
    known = [instruction.name for instruction in pickletools.opcodes if instruction.code == chr(opcode)]
    if not known:
        raise DamagedError(f"0x{opcode:02x} is no pickle instruction")
    raise RefusedError(f"the instruction {known[0]}")


_INSTRUCTIONS: dict[bytes, Callable[[_Machine], None]] = {
    b"\x80": _protocol,
    b"\x95": _frame,
    # constants and numbers
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"I": lambda m: m.push(_integer_line(m)),
    b"L": lambda m: m.push(_decimal(m.line().removesuffix(b"L"))),
    b"J": lambda m: m.push(m.number(_I32)),
    b"K": lambda m: m.push(m.number(_U8)),
    b"M": lambda m: m.push(m.number(_U16)),
    b"\x8a": lambda m: m.push(_long_bytes(m, _U8)),
    b"\x8b": lambda m: m.push(_long_bytes(m, _U32)),
    # bytes (a Python 2 str is bytes) and text
    b"S": lambda m: m.push(_quoted_line(m)),
    b"T": lambda m: m.push(m.take(m.number(_I32))),
    b"U": lambda m: m.push(m.take(m.number(_U8))),
    b"B": lambda m: m.push(m.take(m.number(_U32))),
    b"C": lambda m: m.push(m.take(m.number(_U8))),
    b"\x8e": lambda m: m.push(m.take(m.number(_U64))),
    b"\x96": lambda m: m.push(m.take(m.number(_U64))),  # a bytearray, kept as bytes
    b"\x98": lambda m: None,  # marks a buffer read-only, which bytes are
    b"V": lambda m: m.push(m.line().decode("raw-unicode-escape")),
    b"X": lambda m: m.push(_utf8(m, _U32)),
    b"\x8c": lambda m: m.push(_utf8(m, _U8)),
    b"\x8d": lambda m: m.push(_utf8(m, _U64)),
    # lists, tuples and the stack
    b"(": _Machine.mark,
    b"0": _Machine.discard,
    b"1": _Machine.discard_to_mark,
    b"2": lambda m: m.push(m.stack[-1]),
    b"]": lambda m: m.push([]),
    b"l": lambda m: m.push(m.pop_to_mark()),
    b"a": lambda m: m.append([m.stack.pop()]),
    b"e": lambda m: m.append(m.pop_to_mark()),
    b")": lambda m: m.push(()),
    b"t": lambda m: m.push(tuple(m.pop_to_mark())),
    b"\x85": lambda m: m.tuple_of(1),
    b"\x86": lambda m: m.tuple_of(2),
    b"\x87": lambda m: m.tuple_of(3),
    # the memo
    b"p": lambda m: _memorise(m, _decimal(m.line())),
    b"q": lambda m: _memorise(m, m.number(_U8)),
    b"r": lambda m: _memorise(m, m.number(_U32)),
    b"\x94": lambda m: _memorise(m, len(m.memo)),
    b"g": lambda m: m.push(m.memo[_decimal(m.line())]),
    b"h": lambda m: m.push(m.memo[m.number(_U8)]),
    b"j": lambda m: m.push(m.memo[m.number(_U32)]),
    # what names or calls something: admitted names and our own rules only
    b"c": lambda m: m.push_global(m.name_line(), m.name_line()),
    b"\x93": _Machine.global_from_stack,
    b"i": _Machine.refuse_instance,
    b"R": _Machine.reduce,
    b"b": _Machine.build,
}
