"""SCface: people seen by surveillance cameras at three distances, searched among their frontal mugshots.

Images are named `001_frontal` (the gallery) and `001_cam1_1` (person 1, camera 1, distance 1), anywhere under the folder. Cameras
1-5 count; cameras 6-8 are infrared. Distance 1 is 4.2 m, 2 is 2.6 m, 3 is 1.0 m. A 112x112 image counts as aligned. Any other is
aligned by its landmarks in `all.txt`, one line per image: its name, left eye, right eye, nose, and the mouth's corners or centre.
A probe that was lost, for example because an aligner did not find the face, counts as a failure: one that `all.txt` lists or, if
there is no `all.txt`, one that a person lacks and others have.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.protocols.identification import Search, search
from utils.errors import UserError
from utils.files import numbered_lines
from utils.images import FACE_SIZE, LeftOut, decode_image, find_images, read_image_file
from utils.images.alignment import align_face

DISTANCES = {1: "d1", 2: "d2", 3: "d3"}
METRES = {1: 4.2, 2: 2.6, 3: 1.0}
CAMERAS = (1, 2, 3, 4, 5)
LANDMARKS = "all.txt"
_NAME = re.compile(r"(\d+)_(?:frontal|cam(\d)_(\d))", re.IGNORECASE)


@dataclass(frozen=True)
class ScFace:
    """The images of the protocol: the gallery, then the probes by distance."""

    root: Path
    images: list[Path]
    people: np.ndarray  # int64 [N]
    distances: np.ndarray  # int64 [N]: 0 for the gallery, else 1, 2, 3
    landmarks: dict[str, np.ndarray]  # image name -> float64 [4 or 5, 2]

    def load(self, index: int) -> np.ndarray:
        """An aligned face, uint8 RGB [112, 112, 3]."""
        path = self.images[index]
        image = decode_image(read_image_file(path), path)
        if image.shape[:2] == (FACE_SIZE, FACE_SIZE):
            return image
        points = self.landmarks.get(path.stem.lower())
        if points is None:
            size = f"{image.shape[1]}x{image.shape[0]} pixels"
            raise UserError(f"{path}: {size}, and {LANDMARKS} under {self.root} has no landmarks to align it")
        return align_face(image, points, f"{path}, by {LANDMARKS}")

    def missing_probes(self) -> list[str]:
        """Names of the lost probes, such as 001_cam1_1."""
        names = {path.stem.lower() for path, distance in zip(self.images, self.distances, strict=True) if distance}
        if self.landmarks:
            listed = [match for match in map(_NAME.fullmatch, self.landmarks) if match and _is_probe(match)]
            return sorted({match[0] for match in listed if int(match[1]) in self.people} - names)
        views = sorted({name.partition("_")[2] for name in names})
        there = {(int(name.partition("_")[0]), name.partition("_")[2]) for name in names}
        return [f"{person:03}_{view}" for person in np.unique(self.people) for view in views if (person, view) not in there]

    def evaluate(self, features_ND: np.ndarray) -> dict[str, Search]:
        """The search at each distance with images, d1 … d3, with missing probes last; `features_ND` in the order of `images`."""
        if len(features_ND) != len(self.images):
            raise UserError(f"{self.root}: {len(features_ND)} features for {len(self.images)} images")
        gallery = self.distances == 0
        missing = [int(name[-1]) for name in self.missing_probes()]
        return {
            name: search(
                features_ND[at], self.people[at], features_ND[gallery], self.people[gallery], f"SCface {name}"
            ).with_failures(missing.count(distance))
            for distance, name in DISTANCES.items()
            if (at := self.distances == distance).any()
        }


def find_scface(root: str | Path, left_out: LeftOut | None = None) -> ScFace:
    """Find the protocol's images under `root`. If a name occurs in several folders, the first folder by name counts.

    left_out: receives files that are not images. Raises UserError, listing what was looked for, if the gallery or the probes are
    missing, a person has no or several mugshots, or the landmarks cannot be read.
    """
    root = Path(root)
    named: dict[str, tuple[Path, int, int]] = {}
    for path in find_images(root, left_out):
        match = _NAME.fullmatch(path.stem)
        if match is None:
            continue
        if match[2] is None or _is_probe(match):
            named.setdefault(path.stem.lower(), (path, int(match[1]), int(match[3] or 0)))
    chosen = sorted(named.values(), key=lambda item: (item[2], item[0].name))
    distances = np.array([item[2] for item in chosen], np.int64)
    people = np.array([item[1] for item in chosen], np.int64)
    if not (distances == 0).any() or not (distances > 0).any():
        found = f"found {int((distances == 0).sum())} and {int((distances > 0).sum())}"
        raise UserError(
            f"{root}: does not contain SCface; looked for 001_frontal.jpg … and 001_cam1_1.jpg … in all folders, {found}"
        )
    gallery = people[distances == 0]
    if len(gallery) < 2:
        raise UserError(f"{root}: the gallery needs at least two people; complete the frontal images")
    strangers = np.setdiff1d(people, gallery)
    if len(strangers) or len(np.unique(gallery)) != len(gallery):
        repeated = len(gallery) - len(np.unique(gallery))
        raise UserError(f"{root}: each person needs one frontal image; {len(strangers)} have none, {repeated} several")
    return ScFace(root, [item[0] for item in chosen], people, distances, _read_landmarks(root))


def _is_probe(name: re.Match[str]) -> bool:
    return int(name[2] or 0) in CAMERAS and int(name[3] or 0) in DISTANCES


def _read_landmarks(root: Path) -> dict[str, np.ndarray]:
    landmarks: dict[str, np.ndarray] = {}
    for file in sorted(root.rglob(LANDMARKS)):
        for where, line in numbered_lines(file):
            words = line.replace(",", " ").split()
            try:
                points = np.array(words[1:], np.float64)
            except ValueError as fault:
                raise UserError(f"{where}: {fault}; expected a name without spaces and 8 or 10 coordinates") from fault
            if len(points) not in (8, 10):
                raise UserError(f"{where}: {len(points)} coordinates; expected a name and 8 or 10")
            if not np.isfinite(points).all():
                raise UserError(f"{where}: contains a coordinate that is not finite; fix it")
            landmarks.setdefault(Path(words[0]).stem.lower(), points.reshape(-1, 2))
    return landmarks


def distance_metrics(found: Search) -> dict[str, float]:
    """Rank 1, and the mean similarities of figure 6: with the mate, with the most similar other, and their difference.

    `probes` includes the `missing_probes`, which have no similarities.
    """
    matched, unmatched = float(found.mate_score[found.mated].mean()), float(found.other_score[found.mated].mean())
    return {
        "rank1": found.rank_rate(1),
        "matched": matched,
        "unmatched": unmatched,
        "gain": matched - unmatched,
        "probes": found.counted,
        "missing_probes": int((~found.mated).sum()),
    }
