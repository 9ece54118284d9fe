"""The values that a pickle of plain data is made of, and the rules that stand in for the globals it may name.

No rule ever hands anything from a file to numpy or to a constructor: each checks its arguments and answers with bytes,
a bool, or one of the classes below.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

_SHOWN_CHARACTERS = 80
_MOST_DIMENSIONS = 4


class DamagedError(Exception):
    """The bytes are no complete pickle."""


class RefusedError(Exception):
    """A well-formed instruction that plain data has no need for."""


@dataclass(frozen=True)
class Global:
    """A name that the pickle mentions. Inert: it stands for nothing that could be called."""

    name: str


@dataclass(frozen=True)
class Dtype:
    """numpy's uint8 ("u1") or bool ("b1")."""

    code: str


@dataclass(eq=False)
class PackedArray:
    """A pickled numpy array of uint8 ("u1") or bool ("b1"), as the bytes it holds. `code` is empty until the pickle has
    filled it."""

    code: str = ""
    shape: tuple[int, ...] = ()
    data: bytes = b""

    def fill(self, state: object) -> None:
        """Takes numpy's pickled state (version, shape, dtype, Fortran order, data)."""
        match state:
            case (int(), tuple() as shape, Dtype(code), _, bytes() as data) if len(shape) <= _MOST_DIMENSIONS:
                pass
            case _:
                raise RefusedError("a numpy array that is not of plain bytes")
        if not all(type(extent) is int and extent >= 0 for extent in shape):
            raise RefusedError("a numpy array whose shape is not of whole numbers")
        if prod(shape) != len(data):
            raise DamagedError(f"an array of {prod(shape)} elements holds {len(data)} bytes")
        self.code, self.shape, self.data = code, shape, data


class DecodeBudget:
    """How many bytes the rules may still decode: no honest file holds more than its own size."""

    def __init__(self, size: int):
        self.left = size

    def latin1(self, text: str, encoding: object) -> bytes:
        """`text` as bytes, the way Python 3 writes bytes for protocols 0 to 2."""
        if word(encoding) not in ("latin1", "latin-1"):
            raise RefusedError("encoding text as anything but Latin-1")
        self.left -= len(text)
        if self.left < 0:
            raise RefusedError("more bytes are decoded than the file holds")
        return text.encode("latin-1")


def kind_of(value: object) -> str:
    """What to call a value in an error."""
    return printable(value.name) if isinstance(value, Global) else type(value).__name__


def printable(name: str) -> str:
    """A name that the file chose, made fit for one line of a terminal."""
    plain = name.encode("unicode_escape").decode("ascii")
    return plain if len(plain) <= _SHOWN_CHARACTERS else plain[:_SHOWN_CHARACTERS] + "…"


def word(value: object) -> str:
    """A short word, which Python 2 writes as bytes and Python 3 as str; other values have none."""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return value if isinstance(value, str) else f"<{kind_of(value)}>"


def call(name: str, arguments: tuple, budget: DecodeBudget) -> object:
    """What the pickle means by calling the admitted global `name`."""
    rule = ADMITTED[name]
    if rule is None:
        raise RefusedError(f"calling {name}")
    value = rule(arguments, budget)
    if value is None:
        raise RefusedError(f"calling {name} with arguments that no image or boolean needs")
    return value


def is_plain_dtype_state(state: object) -> bool:
    """(version, byte order, sub-array, names, fields, …): a plain type has neither sub-array nor names nor fields."""
    return isinstance(state, tuple) and len(state) >= 5 and all(part is None for part in state[2:5])


# ------------------------------------------------------- rules: (arguments, budget) -> value, or None where they do not fit


def _encode(arguments: tuple, budget: DecodeBudget) -> bytes | None:
    match arguments:
        case (str() as text, encoding):
            return budget.latin1(text, encoding)
    return None


def _empty_bytes(arguments: tuple, budget: DecodeBudget) -> bytes | None:
    return b"" if arguments == () else None


def _bytearray(arguments: tuple, budget: DecodeBudget) -> bytes | None:
    match arguments:
        case (bytes() as content,):
            return content
        case (str() as text, encoding):
            return budget.latin1(text, encoding)
    return _empty_bytes(arguments, budget)


def _dtype(arguments: tuple, budget: DecodeBudget) -> Dtype:
    code = word(arguments[0]) if arguments else ""
    if code not in ("u1", "b1"):
        raise RefusedError(f"a numpy type {printable(code)} (only uint8, u1, and bool, b1, are admitted)")
    return Dtype(code)


def _reconstruct(arguments: tuple, budget: DecodeBudget) -> PackedArray | None:
    match arguments:
        case (Global("numpy.ndarray"), tuple(), _):
            return PackedArray()
    return None


def _from_buffer(arguments: tuple, budget: DecodeBudget) -> PackedArray | None:
    match arguments:
        case (data, dtype, shape, _):
            array = PackedArray()
            array.fill((1, shape, dtype, False, data))
            return array
    return None


def _scalar(arguments: tuple, budget: DecodeBudget) -> int | None:
    match arguments:
        case (Dtype(code), bytes() as data) if len(data) == 1:
            return bool(data[0]) if code == "b1" else data[0]
    return None


ADMITTED: dict[str, Callable[[tuple, DecodeBudget], object] | None] = {
    "_codecs.encode": _encode,
    "builtins.bytes": _empty_bytes,
    "__builtin__.bytes": _empty_bytes,
    "builtins.bytearray": _bytearray,
    "__builtin__.bytearray": _bytearray,
    "numpy.ndarray": None,  # named as an argument of _reconstruct, never called
    "numpy.dtype": _dtype,
}
for _core in ("numpy.core", "numpy._core"):  # before numpy 2, and since
    ADMITTED[f"{_core}.multiarray._reconstruct"] = _reconstruct
    ADMITTED[f"{_core}.multiarray.scalar"] = _scalar
    ADMITTED[f"{_core}.numeric._frombuffer"] = _from_buffer
