"""One contact sheet per kind of finding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from recognition.data.pack.commands.audit.faces import Faces
from recognition.data.pack.commands.audit.findings import Finding
from recognition.data.pack.commands.grid import BACKGROUND, make_sheet, read_image
from utils.files import write_file
from utils.images import FACE_SIZE, Image

ROWS = 40


def write_sheets(folder: Path, faces: Faces, findings: Sequence[Finding]) -> dict[str, str]:
    """Write KIND.png for each kind: the first findings, one per row, in `audit.csv`'s order. Returns kind -> file name."""
    written = {}
    for kind in dict.fromkeys(found.kind for found in findings):
        shown = [found for found in findings if found.kind == kind][:ROWS]
        rows = [_row(faces, found) for found in shown]
        done, encoded = cv2.imencode(".png", make_sheet(rows, max(map(len, rows)), FACE_SIZE)[..., ::-1])
        assert done, "a sheet of this size can be encoded"
        written[kind] = f"{kind}.png"
        write_file(folder / written[kind], encoded.tobytes())
    return written


def _row(faces: Faces, found: Finding) -> list[Image]:
    """The images on the left, a gap, and those on the right."""
    gap = np.full((FACE_SIZE, FACE_SIZE, 3), BACKGROUND, np.uint8)
    left = [read_image(faces, image, FACE_SIZE) for image in found.left]
    return [*left, gap, *(read_image(found.other or faces, image, FACE_SIZE) for image in found.right)]
