"""The files of an IJB-S release, and a folder of aligned crops.

    DIR/protocols/cs6_metadata.csv                                   subject, videos/4012.mp4 or img/123.jpg, boxes
    DIR/protocols/cs6_surveillance_to_single-booking_probe.csv       videos; also …_to_surveillance_probe.csv
    DIR/protocols/cs6_uav_to_single-booking_probe.csv                videos and images
    DIR/protocols/galleries/cs6_surveillance_to_single_g1.csv        …, subject, image
    DIR/protocols/galleries/cs6_surveillance_to_booking_g1.csv       …, subject, image
    DIR/protocols/galleries/cs6_surveillance_to_surveillance_g1.csv  …, subject, video; and a _g2 of each
    DIR/aligned/SUBJECT/videos_4012_….jpg, img_123.jpg               crops of 112x112 pixels

Each CSV has one header line. Files may also begin with `ijbs_` instead of `cs6_`. The formats are those that public code reads
(PETALface's evaluation, which descends from PFE's); they have not been tried on the release itself.

A source is a video or an image, in the spelling of the crops: `videos_4012`, `img_123`. Up to 15 million crops are expected:
each takes about 100 bytes of memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from utils.errors import UserError
from utils.files import numbered_lines
from utils.images import LeftOut, decode_face, read_image_file, scan_folder

PREFIXES = ("cs6", "ijbs")
PROTOCOLS = {
    "single": "surveillance to single",
    "booking": "surveillance to booking",
    "multiview": "multi-view surveillance to booking",
    "surveillance": "surveillance to surveillance",
    "uav": "UAV to booking",
}
_PROBES = ("surveillance_to_single-booking", "surveillance_to_surveillance", "uav_to_single-booking")
_GALLERIES = ("single", "booking", "surveillance")


class Template(NamedTuple):
    """The crops of one subject in one or more sources."""

    subject: int
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Protocol:
    """name: a key of `PROTOCOLS`. galleries: g1 and g2."""

    name: str
    probes: list[Template]
    galleries: tuple[list[Template], list[Template]]


# -------------------------------------------------------------------------------------------------- protocols


def read_protocols(root: Path, unseen: list[str] | None = None) -> list[Protocol]:
    """Read the five protocols in `root`/protocols. unseen: receives probe videos that the metadata do not mention.

    Raises UserError if a file is missing or malformed, a subject is unknown, or a list names an image or a subject in a video
    that the metadata do not mention.
    """
    folder = root / "protocols"
    files = _find_files(folder)
    subjects_of = _read_metadata(files["metadata"])
    booking_probes, video_probes, uav_probes = (_probes(files[f"{name}_probe"], subjects_of, unseen) for name in _PROBES)
    single, booking, videos = (
        [_gallery(files[f"surveillance_to_{name}_g{number}"], name, subjects_of) for number in (1, 2)] for name in _GALLERIES
    )
    probes_and_galleries = {
        "single": (booking_probes, single),
        "booking": (booking_probes, booking),
        "multiview": (_all_videos(video_probes, subjects_of), booking),
        "surveillance": (video_probes, videos),
        "uav": (uav_probes, booking),
    }
    return [Protocol(name, probes, (g1, g2)) for name, (probes, (g1, g2)) in probes_and_galleries.items()]


def _find_files(folder: Path) -> dict[str, Path]:
    """Name without prefix -> file. Raises UserError, listing what was looked for, if one is missing."""
    names = ["metadata", *(f"{name}_probe" for name in _PROBES)]
    galleries = [f"surveillance_to_{name}_g{number}" for name in _GALLERIES for number in (1, 2)]
    prefix = next((each for each in PREFIXES if (folder / f"{each}_metadata.csv").is_file()), PREFIXES[0])
    files = {name: folder / f"{prefix}_{name}.csv" for name in names}
    files |= {name: folder / "galleries" / f"{prefix}_{name}.csv" for name in galleries}
    missing = [file.relative_to(folder).as_posix() for file in files.values() if not file.is_file()]
    if missing:
        raise UserError(f"{folder}: the IJB-S release is incomplete; missing: {', '.join(missing)}")
    return files


def _read_metadata(path: Path) -> dict[str, list[int]]:
    """Source -> the subjects in it, in the file's order. The file has a line for each box."""
    seen: set[tuple[str, str]] = set()
    subjects_of: dict[str, list[int]] = {}
    for where, (subject, file) in _rows(path, 0, 2):
        if (subject, file) not in seen:
            seen.add((subject, file))
            subjects_of.setdefault(_source(file, where), []).append(_subject(subject, where))
    return subjects_of


def _probes(path: Path, subjects_of: dict[str, list[int]], unseen: list[str] | None) -> list[Template]:
    """One template for each subject in each listed video; an image has one subject, the first in the metadata."""
    templates: dict[Template, None] = {}  # ordered; each once
    for where, (file,) in _rows(path, 0, 1):
        source = _source(file, where)
        is_video = source.startswith("videos_")
        subjects = subjects_of.get(source, [])
        if not subjects and not is_video:
            raise UserError(f"{where}: {file} is not in the metadata, so its subject is unknown")
        if not subjects and unseen is not None and source not in unseen:
            unseen.append(source)
        templates |= {Template(subject, (source,)): None for subject in (subjects if is_video else subjects[:1])}
    return list(templates)


def _all_videos(probes: list[Template], subjects_of: dict[str, list[int]]) -> list[Template]:
    """One template for each subject of `probes`, with all of the subject's videos."""
    videos_of: dict[int, list[str]] = {probe.subject: [] for probe in probes}
    for source, subjects in subjects_of.items():
        for subject in subjects:
            if source.startswith("videos_") and subject in videos_of:
                videos_of[subject].append(source)
    return [Template(subject, tuple(videos)) for subject, videos in videos_of.items()]


def _gallery(path: Path, kind: str, subjects_of: dict[str, list[int]]) -> list[Template]:
    """One template per line, for a booking gallery one per subject, for one of videos one per subject and video."""
    known = {subject for subjects in subjects_of.values() for subject in subjects}
    templates: list[Template] = []
    for where, (number, file) in _rows(path, 1, 2):
        subject, source = _subject(number, where), _source(file, where)
        if subject not in known:
            raise UserError(f"{where}: subject {subject} is not in the metadata")
        if kind == "surveillance" and subject not in subjects_of.get(source, []):
            raise UserError(f"{where}: subject {subject} is not in {file}, according to the metadata")
        templates.append(Template(subject, (source,)))
    if kind == "single":
        return templates
    if kind == "surveillance":
        return list(dict.fromkeys(templates))
    images: dict[int, list[str]] = {}
    for template in templates:
        images.setdefault(template.subject, []).extend(template.sources)
    return [Template(subject, tuple(dict.fromkeys(sources))) for subject, sources in images.items()]


def _rows(path: Path, first: int, count: int) -> Iterator[tuple[str, list[str]]]:
    """`PATH: line N` and the columns `first` … `first + count - 1` of each line below the header."""
    lines = numbered_lines(path)
    next(lines, None)
    empty = True
    for where, line in lines:
        columns = line.split(",", first + count)[first : first + count]
        if len(columns) < count:
            raise UserError(f"{where}: {line[:60]!r} has fewer than {first + count} columns")
        empty = False
        yield where, [column.strip() for column in columns]
    if empty:
        raise UserError(f"{path}: contains no lines below its header")


def _subject(text: str, where: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise UserError(f"{where}: {text!r} is not a subject number")
    return int(text)


def _source(file: str, where: str) -> str:
    path = PurePosixPath(file)
    if len(path.parts) != 2 or path.parts[0] not in ("videos", "img"):
        raise UserError(f"{where}: {file!r} is neither a video, such as videos/4012.mp4, nor an image, such as img/123.jpg")
    return f"{path.parts[0]}_{path.stem}"


# -------------------------------------------------------------------------------------------------- crops


@dataclass(frozen=True)
class Crops:
    """The aligned faces that templates consist of, by appearance: a subject in a source."""

    root: Path
    row_of: dict[tuple[int, str], int]  # subject, source -> number of the appearance, 0 … A-1
    folders: list[Path]  # [A]
    names: list[str]  # [N], file names
    owners: np.ndarray  # int32 [N], the appearance that a crop belongs to

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int) -> np.ndarray:
        """A face, uint8 RGB [112, 112, 3]."""
        path = self.folders[self.owners[index]] / self.names[index]
        return decode_face(read_image_file(path), path)

    def examples(self) -> np.ndarray:
        """The index of one crop of each appearance, int64 [A]."""
        return np.unique(self.owners, return_index=True)[1]

    def stills(self) -> np.ndarray:
        """The indices of the crops that are images, not video frames, int64."""
        is_still = np.zeros(len(self.folders), bool)
        is_still[[row for (_, source), row in self.row_of.items() if source.startswith("img_")]] = True
        return np.flatnonzero(is_still[self.owners])


def find_crops(root: Path, protocols: list[Protocol], left_out: LeftOut | None = None) -> Crops:
    """Find the crops that belong to a template. left_out: receives all other files.

    Raises UserError if there are none.
    """
    wanted = {
        (template.subject, source)
        for protocol in protocols
        for templates in (protocol.probes, *protocol.galleries)
        for template in templates
        for source in template.sources
    }
    row_of: dict[tuple[int, str], int] = {}
    folders: list[Path] = []
    names: list[str] = []
    owners: list[int] = []
    for subject in scan_folder(root, left_out)[1]:
        folder = root / subject
        for name in scan_folder(folder, left_out)[0]:
            stem = name.rpartition(".")[0] or name
            source = stem if stem.startswith("img_") else "_".join(stem.split("_")[:2])
            key = int(subject) if subject.isascii() and subject.isdigit() else -1, source
            if key not in wanted:
                if left_out is not None:
                    left_out.add("unused crop", folder / name)
                continue
            if key not in row_of:
                row_of[key] = len(folders)
                folders.append(folder)
            names.append(name)
            owners.append(row_of[key])
    if not names:
        raise UserError(f"{root}: no crop belongs to a template; looked for SUBJECT/videos_4012_….jpg and SUBJECT/img_123.jpg")
    return Crops(root, row_of, folders, names, np.array(owners, np.int32))
