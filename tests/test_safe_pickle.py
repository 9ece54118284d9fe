"""The reader of plain pickles: it reads honest files as Python does; hostile ones neither run nor allocate anything."""

from __future__ import annotations

import base64
import os
import pickle
import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from eval import safe_pickle
from eval.safe_pickle import PackedArray, load_plain, loads_plain
from utils.errors import UserError

PROTOCOLS = range(6)

# Written by Python 2.7.18: ([three str, one bytearray], [True, False]), by pickle and cPickle, protocols 0 to 2.
PYTHON_2_BYTES = [
    b'\xff\xd8\xff\xe0 "one"\'\n\\x',
    b"\x89PNG\r\n\x1a\n\x00\x80",
    b"\xff\xd8three\x00",
    b"\xff\xd8four\x80",
]
PYTHON_2_PICKLES = {
    "pickle 0": (
        "KChscDAKUydceGZmXHhkOFx4ZmZceGUwICJvbmUiXCdcblxceCcKcDEKYVMnXHg4OVBOR1xyXG5ceDFhXG5ceDAwXHg4MCcKcDIKYVMnXHhm"
        "Zlx4ZDh0aHJlZVx4MDAnCnAzCmFjX19idWlsdGluX18KYnl0ZWFycmF5CnA0CihW/9hmb3VygApwNQpTJ2xhdGluLTEnCnA2CnRwNwpScDgK"
        "YShscDkKSTAxCmFJMDAKYXRwMTAKLg=="
    ),
    "pickle 1": (
        "KF1xAChVDv/Y/+AgIm9uZSInClx4cQFVColQTkcNChoKAIBxAlUI/9h0aHJlZQBxA2NfX2J1aWx0aW5fXwpieXRlYXJyYXkKcQQoWAoAAADD"
        "v8OYZm91csKAcQVVB2xhdGluLTFxBnRxB1JxCGVdcQkoSTAxCkkwMApldHEKLg=="
    ),
    "pickle 2": (
        "gAJdcQAoVQ7/2P/gICJvbmUiJwpceHEBVQqJUE5HDQoaCgCAcQJVCP/YdGhyZWUAcQNjX19idWlsdGluX18KYnl0ZWFycmF5CnEEWAoAAADD"
        "v8OYZm91csKAcQVVB2xhdGluLTFxBoZxB1JxCGVdcQkoiIllhnEKLg=="
    ),
    "cPickle 0": (
        "KChscDEKUydceGZmXHhkOFx4ZmZceGUwICJvbmUiXCdcblxceCcKcDIKYVMnXHg4OVBOR1xyXG5ceDFhXG5ceDAwXHg4MCcKcDMKYVMnXHhm"
        "Zlx4ZDh0aHJlZVx4MDAnCnA0CmFjX19idWlsdGluX18KYnl0ZWFycmF5CnA1CihW/9hmb3VygApTJ2xhdGluLTEnCnRScDYKYShscDcKSTAx"
        "CmFJMDAKYXQu"
    ),
    "cPickle 1": (
        "KF1xAShVDv/Y/+AgIm9uZSInClx4cQJVColQTkcNChoKAIBxA1UI/9h0aHJlZQBxBGNfX2J1aWx0aW5fXwpieXRlYXJyYXkKcQUoWAoAAADD"
        "v8OYZm91csKAVQdsYXRpbi0xdFJxBmVdcQcoSTAxCkkwMApldC4="
    ),
    "cPickle 2": (
        "gAJdcQEoVQ7/2P/gICJvbmUiJwpceHECVQqJUE5HDQoaCgCAcQNVCP/YdGhyZWUAcQRjX19idWlsdGluX18KYnl0ZWFycmF5CnEFWAoAAADD"
        "v8OYZm91csKAVQdsYXRpbi0xhlJxBmVdcQcoiIllhi4="
    ),
}

# Written by Python 2.7.18 with numpy 1.16.6: ([uint8 [9], uint8 [4, 1]], [numpy.bool_(True)]); the last has array([True]).
PYTHON_2_ARRAYS = {
    "pickle 0": (
        "KChscDAKY251bXB5LmNvcmUubXVsdGlhcnJheQpfcmVjb25zdHJ1Y3QKcDEKKGNudW1weQpuZGFycmF5CnAyCihJMAp0cDMKUydiJwpwNAp0"
        "cDUKUnA2CihJMQooSTkKdHA3CmNudW1weQpkdHlwZQpwOAooUyd1MScKcDkKSTAKSTEKdHAxMApScDExCihJMwpTJ3wnCnAxMgpOTk5JLTEK"
        "SS0xCkkwCnRwMTMKYkkwMApTJ1x4ZmZceGQ4XHhmZlx4ZTBvbmVceDAwXHg4MCcKcDE0CnRwMTUKYmFnMQooZzIKKEkwCnRwMTYKZzQKdHAx"
        "NwpScDE4CihJMQooSTQKSTEKdHAxOQpnMTEKSTAwClMnXHg4OVBORycKcDIwCnRwMjEKYmEobHAyMgpjbnVtcHkuY29yZS5tdWx0aWFycmF5"
        "CnNjYWxhcgpwMjMKKGc4CihTJ2IxJwpwMjQKSTAKSTEKdHAyNQpScDI2CihJMwpTJ3wnCnAyNwpOTk5JLTEKSS0xCkkwCnRwMjgKYlMnXHgw"
        "MScKcDI5CnRwMzAKUnAzMQphdHAzMgou"
    ),
    "cPickle 2": (
        "gAJdcQEoY251bXB5LmNvcmUubXVsdGlhcnJheQpfcmVjb25zdHJ1Y3QKcQJjbnVtcHkKbmRhcnJheQpxA0sAhVUBYodScQQoSwFLCYVjbnVt"
        "cHkKZHR5cGUKcQVVAnUxSwBLAYdScQYoSwNVAXxOTk5K/////0r/////SwB0YolVCf/Y/+BvbmUAgHRiaAJoA0sAhVUBYodScQcoSwFLBEsB"
        "hmgGiVUEiVBOR3RiZV1xCGNudW1weS5jb3JlLm11bHRpYXJyYXkKc2NhbGFyCnEJaAVVAmIxSwBLAYdScQooSwNVAXxOTk5K/////0r/////"
        "SwB0YlUBAYZScQthhi4="
    ),
    "cPickle 2, array of booleans": (
        "gAJdcQEoY251bXB5LmNvcmUubXVsdGlhcnJheQpfcmVjb25zdHJ1Y3QKcQJjbnVtcHkKbmRhcnJheQpxA0sAhVUBYodScQQoSwFLCYVjbnVt"
        "cHkKZHR5cGUKcQVVAnUxSwBLAYdScQYoSwNVAXxOTk5K/////0r/////SwB0YolVCf/Y/+BvbmUAgHRiaAJoA0sAhVUBYodScQcoSwFLBEsB"
        "hmgGiVUEiVBOR3RiZWgCaANLAIVVAWKHUnEIKEsBSwGFaAVVAmIxSwBLAYdScQkoSwNVAXxOTk5K/////0r/////SwB0YolVAQF0YoYu"
    ),
}


def plain(value: object) -> object:
    """What the reader should return for an honest Python value."""
    if isinstance(value, (list, tuple)):
        return type(value)(plain(item) for item in value)
    if isinstance(value, np.ndarray):
        return ({"uint8": "u1", "bool": "b1"}[value.dtype.name], value.shape, value.tobytes())
    if isinstance(value, PackedArray):
        return (value.code, value.shape, value.data)
    if isinstance(value, np.bool_):
        return bool(value)
    return bytes(value) if isinstance(value, bytearray) else value


# -------------------------------------------------------------------------------------------------- honest files


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dump", [pickle.dumps, pickle._dumps], ids=["C pickler", "Python pickler"])
def test_reads_what_python_writes(protocol, dump):
    generator = np.random.default_rng(protocol)
    blobs = [generator.bytes(size) for size in (0, 1, 9, 255, 256, 70_000)]
    every_byte = bytes(range(256))
    read_only = np.frombuffer(every_byte, np.uint8)
    arrays = [np.arange(9, dtype=np.uint8), np.zeros((4, 1), np.uint8), read_only]
    if dump is pickle.dumps:
        arrays.append(np.array([], np.uint8))  # CPython's pickler in Python cannot write it together with b""
    value = (
        [*blobs, blobs[2], every_byte, bytearray(every_byte), bytearray(), *arrays, arrays[0]],
        (True, False, np.bool_(True), np.bool_(False), 0, 1, -1, 256, 70_000, -70_000, 2**40, None),
        np.array([True, False, True]),
        ["text", "ÿ ň 脸\n\\", ""],
        list(range(1500)),
    )
    assert plain(loads_plain(dump(value, protocol), "memory")) == plain(value)


@pytest.mark.parametrize("name", PYTHON_2_PICKLES)
def test_reads_what_python_2_writes(name):
    images, issame = loads_plain(base64.b64decode(PYTHON_2_PICKLES[name]), name)
    assert (images, issame) == (PYTHON_2_BYTES, [True, False])


@pytest.mark.parametrize("name", PYTHON_2_ARRAYS)
def test_reads_arrays_that_python_2_writes(name):
    images, issame = loads_plain(base64.b64decode(PYTHON_2_ARRAYS[name]), name)
    assert [plain(image) for image in images] == [("u1", (9,), b"\xff\xd8\xff\xe0one\x00\x80"), ("u1", (4, 1), b"\x89PNG")]
    assert plain(issame) == (("b1", (1,), b"\x01") if "array of booleans" in name else [True])


# -------------------------------------------------------------------------------------------------- hostile files


class Runs:
    """An object whose pickle makes Python's own unpickler run a shell command."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def refuse(content: bytes, *expected: str) -> str:
    with pytest.raises(UserError) as caught:
        loads_plain(content, "set.bin")
    message = str(caught.value)
    for text in ("set.bin", *expected):
        assert text in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("place", ["alone", "among images", "in an object array", "as array data"])
def test_commands_are_refused_and_not_run(tmp_path, protocol, place):
    marker = tmp_path / "it_ran"
    evil = Runs(f"touch {marker}")
    objects = np.empty(1, dtype=object)
    objects[0] = evil
    content = {
        "alone": evil,
        "among images": ([b"image", evil], [True]),
        "in an object array": ([objects, b"image"], [True]),
        "as array data": (np.array([1], np.uint8), [evil]),
    }[place]
    path = tmp_path / "set.bin"
    path.write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(UserError, match=r"set\.bin: refused at byte \d+: .*(posix\.system|numpy type O8)"):
        load_plain(path)
    assert not marker.exists()
    pickle.loads(path.read_bytes())  # a real attack: Python's own unpickler runs it
    assert marker.exists()


CORE = b"numpy.core.multiarray\n"
DTYPE_U1 = b"cnumpy\ndtype\n(S'u1'\nI0\nI1\ntR"
ARRAY = b"c" + CORE + b"_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
HOSTILE = {
    "attribute of an admitted class": (b"cnumpy\nndarray.__class__\n.", "numpy.ndarray.__class__"),
    "instance": (b"(S'id'\nios\nsystem\n.", "INST"),
    "stack global": (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),
    "stack global of parts": (b"\x80\x04\x8c\x05numpy\x8c\x08f2py.sys\x93.", "numpy.f2py.sys"),
    "getattr": (b"c__builtin__\ngetattr\n.", "__builtin__.getattr"),
    "eval": (b"cbuiltins\neval\n(S'1'\ntR.", "builtins.eval"),
    "numpy's pickle loader": (b"cnumpy\nload\n.", "numpy.load"),
    "terminal escapes in a name": (b"cos\n\x1b[2Jsystem\n.", "os.\\x1b[2Jsystem"),
    "a very long name": (b"c" + b"x" * 100_000 + b"\ny\n.", "xxx…"),
    "call of an admitted class": (b"cnumpy\nndarray\n(I1000000000\ntR.", "calling numpy.ndarray"),
    "array of another class": (b"c" + CORE + b"_reconstruct\n(cnumpy\ndtype\n(I0\ntS'b'\ntR.", "_reconstruct"),
    "array of objects": (b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR.", "numpy type O8"),
    "structured dtype": (DTYPE_U1 + b"(I3\nS'|'\nN(S'a'\ntNI-1\nI-1\nI0\ntb.", "state of a Dtype"),
    "array state of a list": (ARRAY + b"(I1\n(I1\nt" + DTYPE_U1 + b"I00\n(ltb.", "not of plain bytes"),
    "array state of a dtype": (DTYPE_U1 + b"(I1\n(I1\nt" + DTYPE_U1 + b"I00\nS'a'\ntb.", "state of a Dtype"),
    "state of a global": (b"c_codecs\nencode\n(S'__code__'\ntb.", "state of a Global"),
    "state of a list": (b"](S'x'\ntb.", "state of a list"),
    "array filled twice": (ARRAY + 2 * (b"(I1\n(I1\nt" + DTYPE_U1 + b"I00\nS'a'\ntb") + b".", "state of a PackedArray"),
    "append to a global": (b"cnumpy\nndarray\nI1\na.", "has no attribute 'append'"),
    "append to an array": (ARRAY + b"I1\na.", "has no attribute 'append'"),
    "call of a text": (b"S'os'\n(tR.", "calling a bytes"),
    "call of an array": (ARRAY + b"(tR.", "calling a PackedArray"),
    "other encoding": (b"c_codecs\nencode\n(V7\nS'zip'\ntR.", "calling _codecs.encode"),
    "huge bytes": (b"c__builtin__\nbytes\n(I1000000000000\ntR.", "calling builtins.bytes"),
    "huge bytearray": (b"c__builtin__\nbytearray\n(I1000000000000\ntR.", "calling builtins.bytearray"),
    "persistent id": (b"Pevil\n.", "PERSID"),
    "binary persistent id": (b"S'evil'\nQ.", "BINPERSID"),
    "extension": (b"\x82\x01.", "EXT1"),
    "new object": (b"cnumpy\nndarray\n)\x81.", "NEWOBJ"),
    "new object with keywords": (b"\x80\x04cnumpy\nndarray\n)}\x92.", "EMPTY_DICT"),
    "object": (b"(cnumpy\nndarray\no.", "OBJ"),
    "out-of-band buffer": (b"\x97.", "NEXT_BUFFER"),
    "dict": (b"}.", "EMPTY_DICT"),
    "set": (b"\x8f.", "EMPTY_SET"),
    "endless digits": (b"I" + b"9" * 1_000_000 + b"\n.", "digits"),
    "endless index": (b"Np" + b"9" * 1_000_000 + b"\n.", "digits"),
    "endless long": (b"\x8b" + struct.pack("<I", 1_000_000) + b"\x01" * 1_000_000 + b".", "LONG4"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hand_made_attacks_are_refused(name):
    content, expected = HOSTILE[name]
    message = refuse(content, "refused at byte", expected)
    assert len(message) < 500


DAMAGED = {
    "empty": b"",
    "no pickle": b"\xff\xd8\xff\xe0",
    "RecordIO": struct.pack("<II", 0xCED7230A, 4) + b"abcd",
    "no end": b"N",
    "nothing on the stack": b".",
    "values left over": b"NN.",
    "bytes after the end": b"N.N",
    "unknown memo": b"h\x05.",
    "pop of nothing": b"0.",
    "tuple of too few": b"N\x87.",
    "no mark": b"Nt.",
    "string without quotes": b"Sabc\n.",
    "a lone quote": b"S'\n.",
    "incomplete escape": b"S'\\x'\n.",
    "escape that Python 2 does not write": b"S'\\q'\n.",
    "no number": b"Ixyz\n.",
    "number without end": b"I1",
    "no UTF-8": b"\x8c\x01\xff.",
    "line without end": b"cos",
    "protocol 6": b"\x80\x06N.",
    "frame past the end": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"N.",
    "array shorter than its shape": ARRAY + b"(I1\n(I5\nt" + DTYPE_U1 + b"I00\nS'a'\ntb.",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_named(name):
    refuse(DAMAGED[name], "not a complete pickle")


def test_a_negative_length_does_not_go_back():
    refuse(b"T" + struct.pack("<i", -5) + b".", "not a complete pickle: BINSTRING pickle has negative byte count")


def lengths_that_lie() -> dict[str, bytes]:
    layouts = {b"T": "<i", b"B": "<I", b"X": "<I", b"\x8e": "<Q", b"\x96": "<Q", b"\x8d": "<Q", b"\x8b": "<I"}
    lies = {
        f"opcode {opcode!r}, {length:#x}": opcode + struct.pack(layout, length) + b"abc."
        for opcode, layout in layouts.items()
        for length in (2**31 - 1, 2**30, 2**63 - 1, 2**64 - 1)
        if length < 2 ** (8 * struct.calcsize(layout) - (layout == "<i"))
    }
    lies["memo index"] = b"Nr" + struct.pack("<I", 2**32 - 1) + b"j" + struct.pack("<I", 2**32 - 2) + b"."
    lies["shape"] = ARRAY + b"(I1\n(I4000000000\nI4000000000\nt" + DTYPE_U1 + b"I00\nS'a'\ntb."
    return lies


@pytest.mark.parametrize("name,content", lengths_that_lie().items(), ids=list(lengths_that_lie()))
def test_a_length_that_lies_allocates_nothing(name, content):
    tracemalloc.start()
    try:
        refuse(content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20


def test_bombs_do_not_grow():
    tracemalloc.start()
    start = time.perf_counter()
    try:
        # 2^200 leaves, as 200 pairs that hold the pair before twice
        nested = loads_plain(b"N" + 200 * b"2\x86" + b".", "set.bin")
        # one text of 1 MB, turned into bytes a thousand times
        text = b"X" + struct.pack("<I", 2**20) + b"a" * 2**20 + b"q\x010"
        encode = b"c_codecs\nencode\n(h\x01S'latin1'\ntR"
        refuse(text + b"(" + 1000 * encode + b"t.", "more bytes are decoded")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(nested, tuple) and nested[0] is nested[1]
    assert peak < 16 * 2**20
    assert time.perf_counter() - start < 5


def test_instructions_are_bounded(monkeypatch):
    monkeypatch.setattr(safe_pickle, "MAX_INSTRUCTIONS", 1000)
    assert loads_plain(b"(" + b"N" * 997 + b"t.", "set.bin") == (None,) * 997
    refuse(b"(" + b"N" * 998 + b"t.", "more than 1000 instructions")


def test_every_truncation_and_any_mutation_ends_in_a_user_error():
    generator = np.random.default_rng(0)
    value = ([b"one", bytearray(b"two"), np.arange(3, dtype=np.uint8)], [True, np.bool_(False)])
    originals = [pickle.dumps(value, protocol) for protocol in PROTOCOLS]
    originals += [base64.b64decode(text) for text in (*PYTHON_2_PICKLES.values(), *PYTHON_2_ARRAYS.values())]
    outcomes = {"read": 0, "refused": 0}
    for original in originals:
        for end in range(len(original)):
            refuse(original[:end])
        for _ in range(400):
            mutant = np.frombuffer(original, np.uint8).copy()
            mutant[generator.integers(len(mutant), size=2)] = generator.integers(256, size=2)
            try:
                loads_plain(mutant.tobytes(), "set.bin")
                outcomes["read"] += 1
            except UserError:
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 100


@pytest.mark.parametrize("make", ["missing", "empty", "folder"])
def test_files_that_cannot_be_read_are_named(tmp_path: Path, make):
    path = tmp_path / "set.bin"
    if make == "empty":
        path.touch()
    elif make == "folder":
        path.mkdir()
    with pytest.raises(UserError, match=r"set\.bin: (cannot be read|the file is empty)"):
        load_plain(path)
