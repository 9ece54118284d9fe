"""One contact sheet per kind of finding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from recognition.data.pack.commands.audit.faces import Faces
from recognition.data.pack.commands.audit.findings import Finding
from recognition.data.pack.commands.grid import BACKGROUND, make_sheet
from utils.files import write_file
from utils.images import FACE_SIZE, Image, decode_face

ROWS = 40


def write_sheets(folder: Path, faces: Faces, findings: Sequence[Finding]) -> dict[str, str]:
    """Write KIND.png for each kind: one finding per row, in the order of audit.csv. Returns kind -> file name.

    Of more than `ROWS` findings, it shows some from the clearest to the most doubtful.
    """
    written = {}
    for kind in dict.fromkeys(found.kind for found in findings):
        all_found = [found for found in findings if found.kind == kind]
        places = np.unique(np.linspace(0, len(all_found) - 1, ROWS).astype(np.int64)).tolist()
        shown = [all_found[place] for place in places]
        width = max(len(found.left) for found in shown)
        rows = [_row(faces, found, width) for found in shown]
        done, encoded = cv2.imencode(".png", make_sheet(rows, max(map(len, rows)), FACE_SIZE)[..., ::-1])
        assert done, "a sheet of this size can be encoded"
        written[kind] = f"{kind}.png"
        write_file(folder / written[kind], encoded.tobytes())
    return written


def _row(faces: Faces, found: Finding, width: int) -> list[Image]:
    """The images on the left, filled up to `width`, a gap, and those on the right."""
    blank = np.full((FACE_SIZE, FACE_SIZE, 3), BACKGROUND, np.uint8)
    left = [_read(faces, image) for image in found.left]
    return left + [blank] * (width + 1 - len(left)) + [_read(found.other or faces, image) for image in found.right]


def _read(faces: Faces, image: int) -> Image:
    return decode_face(faces.read(image)[0], faces.where(image))
