"""List of pairs and folder of aligned faces -> verification `.bin`.

    python -m recognition.data.pack pairs pairs.txt lfw_aligned/ lfw.bin

Two kinds of list are supported:
  LFW's     lines `NAME i j` (same person) and `NAME1 i NAME2 j` (different people), and before them `10<TAB>300` (or `300`, for
            one set), which may be missing; the image is NAME/NAME_0001.jpg, with any image suffix
  by paths  lines `PATH1 PATH2 1` (same person) or `PATH1 PATH2 0` (different people), below the folder
Fields are separated by spaces, tabs or commas (CSV, with or without a header); names and paths that contain spaces need tabs or
commas.

Degrading faces makes sets of mixed and low quality from the same pairs; it imitates distance, lens, sensor and compression:
    python -m recognition.data.pack pairs pairs.txt lfw_aligned/ lfw_mixed.bin --degrade second
    python -m recognition.data.pack pairs pairs.txt lfw_aligned/ lfw_lq.bin --degrade both
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from recognition.data.bins import write_bin
from recognition.data.pack.arguments import add_face_format_arguments, face_format_of
from recognition.data.pack.commands.degrade import PAIRS, PIXELS, Degradation, add_degradation_arguments
from recognition.data.pack.face_encoding import FaceFormat, MadeToFit, encode_file
from recognition.data.pack.listing import inner_name
from recognition.data.parallel import add_workers_argument, in_order
from utils.errors import UserError
from utils.files import numbered_lines, path_inside
from utils.images import SUFFIXES

HELP = "list of pairs and image folder -> verification .bin"
_ADVICE = "fix it, or separate with tabs or commas if a name contains spaces"
_DEGRADED = {"none": (), "second": (1,), "both": (0, 1)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pairs", type=Path, help="the list, such as LFW's pairs.txt")
    parser.add_argument("source", type=Path, help="folder with the images")
    parser.add_argument("out", type=Path, help=".bin file to write; an existing one is replaced")
    parser.add_argument("--degrade", choices=tuple(_DEGRADED), default="none", help="faces of a pair to degrade (%(default)s)")
    add_degradation_arguments(parser)
    parser.set_defaults(pixels=None, seed=None)  # to notice whether they were given
    add_face_format_arguments(parser)
    add_workers_argument(parser)


@dataclass(frozen=True)
class Pair:
    """where: its line, for messages. first, second: paths below the folder, LFW's without suffix. same: one person."""

    where: str
    first: str
    second: str
    same: bool


def read_pairs(path: Path) -> list[Pair]:
    """The pairs in their order. Raises UserError for a malformed line and if LFW's first line announces another number."""
    lines = list(numbered_lines(path))
    if not lines:
        raise UserError(f"{path}: is empty; expected LFW's pairs.txt or lines `PATH1 PATH2 0|1`")
    if len(lines) > 1 and _is_csv_header(lines[0][1]):
        del lines[0]
    header = lines[0][1].split()
    if len(header) > 2 or not all(_is_count(number) for number in header):
        parse = _lfw_pair if _is_lfw(lines) else _pair_of_paths
        return [parse(where, line) for where, line in lines]
    pairs = [_lfw_pair(where, line) for where, line in lines[1:]]
    sets, each = (1, int(header[0])) if len(header) == 1 else (int(header[0]), int(header[1]))
    if len(pairs) != 2 * sets * each:
        raise UserError(f"{path}: line 1 announces {sets} x 2 x {each} pairs, but {len(pairs)} follow; the list is incomplete")
    wrong = [place for place, pair in enumerate(pairs) if pair.same != _expects_same(place, each)]
    if wrong:
        kind = "one person" if _expects_same(wrong[0], each) else "two people"
        raise UserError(f"{pairs[wrong[0]].where}: expected a pair of {kind}, by line 1; the list is not in LFW's order")
    return pairs


def _is_lfw(lines: list[tuple[str, str]]) -> bool:
    """Whether a list without a header is LFW's. `A 2 1` may be of either kind; other lines decide."""
    fields = [each for each in (_fields(line) for _, line in lines) if len(each) in (3, 4)]
    by_path = any(len(each) == 3 and each[2] in ("0", "1") and not _is_count(each[1]) for each in fields)
    return not by_path and any(_is_count(each[1]) and _is_count(each[-1]) and each[2:] not in (["0"], ["1"]) for each in fields)


def _fields(line: str) -> list[str]:
    if "\t" in line:
        return line.split("\t")
    fields = next(csv.reader([line.rstrip(",")], skipinitialspace=True)) if "," in line else []
    return fields if len(fields) in (3, 4) and fields[-1].isdigit() else line.split()


def _is_csv_header(line: str) -> bool:
    """Such as `path1,path2,same` or `name,imagenum1,imagenum2,`."""
    return "," in line and not {"/", "."} & set(line) and not any(text.strip().isdigit() for text in line.split(","))


def _expects_same(place: int, each: int) -> bool:
    """Each of LFW's sets has `each` pairs of one person, and then as many of two people."""
    return place // each % 2 == 0


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0


def _lfw_pair(where: str, line: str) -> Pair:
    fields = _fields(line)
    if len(fields) == 3 and _is_count(fields[1]) and _is_count(fields[2]):
        return Pair(where, _lfw_image(fields[0], fields[1], where), _lfw_image(fields[0], fields[2], where), True)
    if len(fields) == 4 and _is_count(fields[1]) and _is_count(fields[3]):
        return Pair(where, _lfw_image(fields[0], fields[1], where), _lfw_image(fields[2], fields[3], where), False)
    raise UserError(f"{where}: {line[:80]!r} is neither `NAME i j` nor `NAME1 i NAME2 j`; {_ADVICE}")


def _lfw_image(name: str, number: str, where: str) -> str:
    name = inner_name(name, where)
    return f"{name}/{name}_{int(number):04d}"


def _pair_of_paths(where: str, line: str) -> Pair:
    fields = _fields(line)
    if len(fields) != 3 or fields[2] not in ("0", "1"):
        raise UserError(f"{where}: {line[:80]!r} is not `PATH1 PATH2 0|1`, and line 1 is not LFW's; {_ADVICE}")
    return Pair(where, str(path_inside(fields[0], where)), str(path_inside(fields[1], where)), fields[2] == "1")


def find_image(source: Path, path: str, where: str) -> Path:
    """The image file of a path that may lack its suffix. Raises UserError if there is none, or more than one."""
    exact = source / path
    if exact.suffix.lower() in SUFFIXES:
        if not exact.is_file():
            raise UserError(f"{where}: {exact} is missing; is {source} the right folder?")
        return exact
    found = [file for file in (exact, *_with_suffixes(exact)) if file.is_file()]
    if len(found) != 1:
        problem = f"names {len(found)} files: {', '.join(file.name for file in found)}" if found else "is missing"
        raise UserError(f"{where}: {exact}{'' if found else '.jpg (or .png, …)'} {problem}; is {source} the right folder?")
    return found[0]


def _with_suffixes(path: Path) -> Iterable[Path]:
    for suffix in sorted(SUFFIXES):
        yield from (path.with_name(path.name + suffix), path.with_name(path.name + suffix.upper()))


def encode_pair(
    source: Path, face_format: FaceFormat, degradation: Degradation, degraded: tuple[int, ...], numbered: tuple[int, Pair]
) -> tuple[list[bytes], list[str]]:
    """Runs in a worker: the two images of a numbered pair, and which of them were made to fit.

    degraded: which of them to degrade; one does not affect the other.
    """
    number, pair = numbered
    images, made_to_fit = [], []
    try:
        for path in (pair.first, pair.second):
            payload, odd_size = encode_file(find_image(source, path, pair.where), face_format)
            images.append(payload)
            made_to_fit += [f"{path} is {odd_size}"] if odd_size else []
    except UserError as error:
        raise error if str(error).startswith(pair.where) else UserError(f"{pair.where}: {error}") from error
    for member in degraded:
        images[member] = degradation(images[member], pair.where, face_format, PAIRS, number, member)
    return images, made_to_fit


def run(arguments: argparse.Namespace) -> None:
    face_format = face_format_of(arguments)
    if not arguments.source.is_dir():
        raise UserError(f"{arguments.source}: is not a folder; give the folder with the images")
    if arguments.degrade == "none" and (arguments.pixels, arguments.seed) != (None, None):
        raise UserError("--pixels and --seed are for degraded faces: add --degrade second, or --degrade both")
    low, high = arguments.pixels or PIXELS
    degradation = Degradation(low, high, arguments.seed or 0)
    pairs = read_pairs(arguments.pairs)
    images: list[bytes] = []
    made_to_fit = MadeToFit()
    work = partial(encode_pair, arguments.source, face_format, degradation, _DEGRADED[arguments.degrade])
    with in_order(work, list(enumerate(pairs)), arguments.workers, "encoding", len(pairs), "pairs") as encoded:
        for both, odd in encoded:
            images += both
            made_to_fit.add(odd)
    write_bin(arguments.out, images, [pair.same for pair in pairs])
    same = sum(pair.same for pair in pairs)
    degraded = "" if arguments.degrade == "none" else f"; degraded: {arguments.degrade}"
    print(f"{arguments.out}: {len(pairs)} pairs, {same} of one person and {len(pairs) - same} of two{degraded}")
    made_to_fit.warn(arguments.source, face_format)
