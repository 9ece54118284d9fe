"""insightface's verification files: a pickle of (encoded images, two per pair; whether each pair shows the same person)."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError
from utils.files import new_file

PROTOCOL = 4


def write_bin(path: str | os.PathLike[str], images: Sequence[bytes], issame: Sequence[bool]) -> None:
    """Write a `.bin` file, atomically. The same content yields the same bytes.

    Args:
        path: the file to write; an existing file is replaced.
        images: encoded JPEG or PNG images; 2i and 2i+1 are pair i.
        issame: for each pair, whether both images show the same person.

    Raises:
        UserError: there are not two images per pair, an image is empty, or the file cannot be written.
    """
    target = Path(path)
    if len(images) != 2 * len(issame):
        raise UserError(
            f"{target}: {len(issame)} pairs need {2 * len(issame)} images, found {len(images)}; give two images per pair"
        )
    empty = next((place for place, image in enumerate(images) if len(image) == 0), None)
    if empty is not None:
        raise UserError(f"{target}: image {empty} is empty; give encoded JPEG or PNG bytes")
    content = ([bytes(image) for image in images], [bool(same) for same in issame])
    with new_file(target) as partial, partial.open("wb") as file:
        pickler = pickle.Pickler(file, protocol=PROTOCOL)
        pickler.fast = True  # no memo, so that the bytes do not depend on which objects the caller shares
        pickler.dump(content)
