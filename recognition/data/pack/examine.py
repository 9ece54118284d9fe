"""Every image of a packed data set read and decoded, in several processes, into a few arrays."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

from recognition.data.dataset import FaceDataset
from recognition.data.pack.parallel import chunks, in_order, shared_object
from utils.errors import UserError
from utils.images import decode_image

CHUNK = 256
SOUND, UNREADABLE, UNDECODABLE = range(3)
PROBLEMS_KEPT = 20
Finding = tuple[int, int, int, int, int, str]  # status, label, digest, height, width, message


@dataclass
class Examination:
    """Arrays [images] in the set's order, and the messages of the first problems.

    status: SOUND, UNREADABLE (the record) or UNDECODABLE (its image). label: int64, -1 where unreadable. digest: uint64,
    of the encoded image. height, width: of the decoded image, 0 where there is none.
    """

    status: npt.NDArray[np.uint8]
    label: npt.NDArray[np.int64]
    digest: npt.NDArray[np.uint64]
    height: npt.NDArray[np.int32]
    width: npt.NDArray[np.int32]
    problems: list[str]


def examine(faces: FaceDataset, workers: int) -> Examination:
    """Reads and decodes everything. faces: opened with `strict=False`, if damage is to be counted rather than raised."""
    count = len(faces)
    found = Examination(
        np.zeros(count, np.uint8), np.full(count, -1, np.int64), np.zeros(count, np.uint64),
        np.zeros(count, np.int32), np.zeros(count, np.int32), [],
    )  # fmt: skip
    at = 0
    with in_order(examine_part, chunks(count, CHUNK), workers, "examining", count, advance=len, shared=faces) as parts:
        columns: tuple[npt.NDArray[Any], ...] = (found.status, found.label, found.digest, found.height, found.width)
        for part in parts:
            *values, messages = zip(*part, strict=True)
            for column, new in zip(columns, values, strict=True):
                np.copyto(column[at : at + len(part)], np.array(new, column.dtype))
            found.problems += [message for message in messages if message][: PROBLEMS_KEPT - len(found.problems)]
            at += len(part)
    return found


def examine_part(part: tuple[int, int]) -> list[Finding]:
    """Runs in a worker."""
    faces: FaceDataset = shared_object()
    return [_examine_image(faces, image) for image in range(*part)]


def _examine_image(faces: FaceDataset, image: int) -> Finding:
    try:
        payload, label = faces.read(image)
    except UserError as error:
        return UNREADABLE, -1, 0, 0, 0, str(error)
    digest = int.from_bytes(blake2b(payload, digest_size=8).digest(), "little")
    try:
        height, width = decode_image(payload, faces.where(image)).shape[:2]
    except UserError as error:
        return UNDECODABLE, label, digest, 0, 0, str(error)
    return SOUND, label, digest, height, width, ""
