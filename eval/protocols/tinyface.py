"""TinyFace: low-resolution faces searched in a large gallery in which every probe has mates (closed set).

    DIR/aligned_pad_0.1_pad_high/{Probe,Gallery_Match,Gallery_Distractor}/   112x112 faces, as published by AdaFace's authors
    DIR/tinyface/Testing_Set/{Probe,Gallery_Match,Gallery_Distractor}/       the release, which lists the protocol's images

The gallery consists of matches and distractors. An image `17_2.jpg` shows person 17. A distractor is nobody's mate. A probe whose
mates are all missing, for example because an aligner did not find them, counts as a failure.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.protocols.identification import Search, search
from utils.errors import UserError
from utils.images import KINDS, LeftOut, decode_face, find_images

RANKS = (1, 5, 20)
RELEASED_PROBES = 3728
ALIGNED, PROTOCOL = "aligned_pad_0.1_pad_high", "tinyface/Testing_Set"
PARTS = ("Probe", "Gallery_Match", "Gallery_Distractor")
DISTRACTOR = -1  # label


@dataclass(frozen=True)
class TinyFace:
    """The images of the protocol: probes first, then matches, then distractors."""

    root: Path
    images: list[Path]
    labels: np.ndarray  # int64 [N], the person shown; -1 for distractors
    probes: int  # number of probes; the images after them are the gallery

    def load(self, index: int) -> np.ndarray:
        """An aligned face, uint8 RGB [112, 112, 3]."""
        path = self.images[index]
        try:
            return decode_face(path.read_bytes(), f"TinyFace, {path}")
        except OSError as fault:
            raise UserError(f"TinyFace, {path}: {fault.strerror}") from fault

    def evaluate(self, features_ND: np.ndarray) -> Search:
        """Search the probes in the gallery; `features_ND` in the order of `images`."""
        if len(features_ND) != len(self.images):
            raise UserError(f"{self.root}: {len(features_ND)} features for {len(self.images)} images")
        p = self.probes
        return search(features_ND[:p], self.labels[:p], features_ND[p:], self.labels[p:], str(self.root), closed_set=True)


def find_tinyface(root: str | Path, left_out: LeftOut | None = None) -> TinyFace:
    """Find the protocol's images under `root`, or under a folder `tinyface` in it.

    If the release's Testing_Set exists, only its images count; otherwise all aligned images do. left_out: receives other files.
    Raises UserError, listing what was looked for, if folders or images are missing, or if a name does not begin with a person's
    number.
    """
    given = Path(root)
    candidates = [given / ALIGNED, given, given / "tinyface" / ALIGNED]
    aligned = next((folder for folder in candidates if (folder / PARTS[0]).is_dir()), None)
    if aligned is None:
        looked = ", ".join(str(folder / PARTS[0]) for folder in candidates)
        raise UserError(f"{root}: does not contain TinyFace; looked for {looked}")
    protocol = aligned.parent / PROTOCOL
    images, labels, probes = [], [], 0
    for part in PARTS:
        paths = _images(aligned / part, left_out)
        if (protocol / part).is_dir():
            paths = _of_the_protocol(paths, _images(protocol / part), aligned / part, protocol / part)
        images += paths
        labels += [DISTRACTOR if part == PARTS[2] else _person(path) for path in paths]
        probes = probes or len(images)
    return TinyFace(aligned, images, np.array(labels, np.int64), probes)


def _images(folder: Path, left_out: LeftOut | None = None) -> list[Path]:
    if not folder.is_dir():
        looked = f"looked for the folders {', '.join(PARTS)}"
        raise UserError(f"{folder.parent}: TinyFace is incomplete; {looked}; {folder.name} is missing")
    paths = find_images(folder, left_out)
    if not paths:
        raise UserError(f"{folder}: contains no images ({KINDS}, by suffix)")
    return paths


def _of_the_protocol(paths: list[Path], wanted: list[Path], folder: Path, protocol: Path) -> list[Path]:
    by_name = {path.stem: path for path in paths}
    missing = [path.stem for path in wanted if path.stem not in by_name]
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} of the {len(wanted)} images of {protocol} are missing, such as {missing[0]}; "
            "align the release again"
        )
    return [by_name[path.stem] for path in wanted]


def _person(path: Path) -> int:
    number = path.stem.split("_")[0]
    if not number.isascii() or not number.isdigit():
        raise UserError(f"{path}: expected a name that begins with the person's number, such as 17_2.jpg")
    return int(number)
