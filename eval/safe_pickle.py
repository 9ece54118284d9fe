"""Reads pickles of plain data without importing, constructing or calling anything that the file names.

The parsing is left to the standard library's unpickler written in Python, restricted in three ways:

- it has only the instructions for plain data; any other one is refused;
- a global becomes an inert `Global`. Calling one applies a rule that checks the arguments and returns plain data. Nothing
  else can be called, and no attributes can be set;
- it reads from memory and checks each length against the bytes that are left, so a length field allocates nothing. The number
  of instructions is bounded, and so is what the rules decode.
"""

from __future__ import annotations

import io
import mmap
import pickle
import pickletools
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from utils.errors import UserError

MAX_INSTRUCTIONS = 20_000_000  # enough for half a million uint8 arrays (40 each); an instruction costs up to 64 bytes
_MAX_DIGITS = 20
_MAX_DIMENSIONS = 4
_PLAIN_DATA = """
    PROTO NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8
    UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    BINFLOAT FLOAT MARK POP POP_MARK DUP BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL
"""
_NUMBERS = {"b1", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"}  # numpy's types, with their sizes in bytes
_GLOBALS = {
    "_codecs.encode", "builtins.bytes", "builtins.bytearray", "numpy.ndarray", "numpy.dtype",
    "numpy.core.multiarray._reconstruct", "numpy.core.multiarray.scalar", "numpy.core.numeric._frombuffer",
}  # fmt: skip


class _RefusedError(Exception):
    """The pickle asks for something that plain data does not need."""


@dataclass(frozen=True, slots=True)
class Global:
    """A name in the pickle. It cannot be called."""

    name: str


@dataclass(eq=False, slots=True)
class Dtype:
    """A numpy type in `_NUMBERS`. order: its byte order, "<" or ">"; "|" for one byte."""

    code: str
    order: str = "|"

    @property
    def name(self) -> str:
        """As in `PackedArray.code`."""
        return self.code if self.code[1] == "1" else self.order.replace("|", "<") + self.code


@dataclass(eq=False, slots=True)
class PackedArray:
    """A pickled numpy array, as its bytes. code: "u1", "b1", "<i8" and so on; "" until the pickle has filled it."""

    code: str = ""
    shape: tuple[int, ...] = ()
    data: bytes = b""

    def fill(self, shape: object, dtype: object, data: object) -> PackedArray:
        match shape, dtype, data:
            case tuple(shape), Dtype(code), bytes(data) if len(shape) <= _MAX_DIMENSIONS:
                lengths = all(type(extent) is int and extent >= 0 for extent in shape)
                if not lengths or prod(shape) * int(code[1]) != len(data):
                    raise ValueError(f"the shape of an array does not fit its {len(data)} bytes")
                self.code, self.shape, self.data = dtype.name, shape, data
                return self
        raise _RefusedError("a numpy array that is not of plain bytes")


def load_plain(path: str | Path) -> object:
    """The content of a pickle file (Python 2 or 3, protocols 0 to 5): lists, tuples, bytes, str, int, float, bool, None
    and `PackedArray`. Bytearrays and Python 2 strings become bytes, numpy's scalars Python's.

    Raises UserError, naming the file and the byte, if the file is missing, damaged, or contains anything else.
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
    """`load_plain` for bytes in memory or a mapped file; `where` names them in errors."""
    unpickler = _PlainUnpickler(content)
    try:
        with warnings.catch_warnings(action="error"):  # an escape that Python 2 does not write
            return unpickler.load()
    except (_RefusedError, AttributeError, TypeError) as error:
        reason = str(error) if isinstance(error, _RefusedError) else f"an instruction does not suit its values ({error})"
        raise UserError(
            f"{where}: refused at byte {unpickler.at}: {reason}. Such a file contains lists, bytes, arrays of numbers "
            "and truth values, and no code. Nothing was run; do not trust this file"
        ) from error
    except (pickle.UnpicklingError, Warning, LookupError, ValueError) as error:
        reason = "the instructions do not fit together" if isinstance(error, LookupError) else str(error)
        raise UserError(
            f"{where}: not a complete pickle: {reason} (byte {unpickler.at} of {len(content)}); fetch or pack it again"
        ) from error


def _short_line(load_number: Callable[[Any], None]) -> Callable[[Any], None]:
    """`load_number`, which parses a line of digits, for short lines only: no honest file has longer ones."""

    def load(unpickler: _PlainUnpickler) -> None:
        longest = unpickler.position + _MAX_DIGITS + 1
        if unpickler.content.find(b"\n", unpickler.position, longest) < 0 and longest <= unpickler.size:
            raise _RefusedError(f"a number of more than {_MAX_DIGITS} digits")
        load_number(unpickler)

    return load


class _PlainUnpickler(pickle._Unpickler):
    """`pickle._Unpickler` of bytes in memory, restricted to plain data. `at` is where the current instruction starts."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        code[0]: pickle._Unpickler.dispatch[code[0]] for code in (getattr(pickle, name) for name in _PLAIN_DATA.split())
    }
    for _number in (pickle.INT, pickle.LONG, pickle.FLOAT, pickle.GET, pickle.PUT):
        dispatch[_number[0]] = _short_line(pickle._Unpickler.dispatch[_number[0]])
    dispatch[pickle.BYTEARRAY8[0]] = dispatch[pickle.BINBYTES8[0]]  # the library's own allocates before it reads
    dispatch[pickle.READONLY_BUFFER[0]] = lambda unpickler: None  # bytes are read-only

    def __init__(self, content: bytes | mmap.mmap):
        super().__init__(io.BytesIO(), encoding="bytes")  # a file that is never read: see `read` and `readline`
        self.content, self.size, self.position, self.at = content, len(content), 0, 0
        self.decodable = self.size  # bytes of text that may still be decoded; an honest file decodes each once
        self.metastack: list[list[Any]] = []
        self.stack: list[Any] = []
        self.append = self.stack.append

    def load(self) -> object:
        for _ in range(MAX_INSTRUCTIONS):
            self.at = self.position
            opcode = self.read(1)
            if opcode == pickle.STOP:
                value = self.stack.pop()
                if self.stack or self.metastack or self.position < self.size:
                    raise ValueError("values or bytes are left over at its end")
                return value
            self.dispatch.get(opcode[0], _refuse)(self)
        raise _RefusedError(f"more than {MAX_INSTRUCTIONS} instructions")

    def read(self, length: int) -> bytes:
        end = self.position + length
        if not self.position <= end <= self.size:
            raise ValueError(f"the file ends where {length} more bytes should follow")
        taken = self.content[self.position : end]
        self.position = end
        return taken

    def readline(self) -> bytes:
        end = self.content.find(b"\n", self.position)
        if end < 0:
            raise ValueError("the file ends inside a line")
        return self.read(end + 1 - self.position)

    def load_frame(self) -> None:
        (length,) = struct.unpack("<Q", self.read(8))
        if length > self.size - self.position:
            raise ValueError(f"a frame of {length} bytes goes past the end")

    dispatch[pickle.FRAME[0]] = load_frame

    def find_class(self, module: str, name: str) -> Global:
        asked = f"{module}.{name}"
        name = asked.replace("__builtin__.", "builtins.", 1).replace("numpy._core.", "numpy.core.", 1)  # Python 2, numpy 2
        if name not in _GLOBALS:
            raise _RefusedError(f"the file tries to load {_printable(asked)}")
        return Global(name)

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Global):
            raise _RefusedError(f"calling a {type(function).__name__}")
        self.append(self.call(function.name, arguments))

    dispatch[pickle.REDUCE[0]] = load_reduce

    def call(self, name: str, arguments: object) -> object:
        """What the pickle means by calling an admitted global."""
        match name, arguments:
            case "builtins.bytes" | "builtins.bytearray", ():
                return b""
            case "builtins.bytearray", (bytes(content),):
                return content
            case "builtins.bytearray" | "_codecs.encode", (str(text), "latin1" | "latin-1" | b"latin1" | b"latin-1"):
                self.decodable -= len(text)
                if self.decodable < 0:
                    raise _RefusedError("more bytes are decoded than the file holds")
                return text.encode("latin-1")
            case "numpy.dtype", (bytes() | str() as code, _, _):
                code = code if isinstance(code, str) else code.decode("latin-1")
                if code not in _NUMBERS:
                    raise _RefusedError(f"a numpy type {_printable(code)} (only booleans, integers and floats are admitted)")
                return Dtype(code)
            case "numpy.core.multiarray._reconstruct", (Global("numpy.ndarray"), tuple(), _):
                return PackedArray()
            case "numpy.core.numeric._frombuffer", (data, dtype, shape, _):
                return PackedArray().fill(shape, dtype, data)
            case "numpy.core.multiarray.scalar", (Dtype(code) as dtype, bytes(data)) if len(data) == int(code[1]):
                return np.frombuffer(data, dtype.name)[0].item()
        raise _RefusedError(f"calling {name} with arguments that no image or boolean needs")

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        match target, state:
            case PackedArray(code=""), (int(), shape, dtype, _, data):  # version, shape, dtype, Fortran order, data
                target.fill(shape, dtype, data)
            case Dtype(), (_, order, None, None, None, _, _, _):  # a plain dtype has no sub-array, names or fields
                target.order = ">" if order in (">", b">") else "<"
            case _:
                raise _RefusedError(f"setting the state of a {type(target).__name__}")

    dispatch[pickle.BUILD[0]] = load_build


def _refuse(unpickler: _PlainUnpickler) -> None:
    opcode = unpickler.content[unpickler.at]
    for known in pickletools.opcodes:
        if known.code == chr(opcode):
            raise _RefusedError(f"the instruction {known.name}")
    raise ValueError(f"0x{opcode:02x} is not a pickle instruction")


def _printable(name: str) -> str:
    """Text from the file, fit for one line of a terminal."""
    plain = name.encode("unicode_escape").decode("ascii")
    return plain if len(plain) <= 80 else plain[:80] + "…"
