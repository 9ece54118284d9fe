"""insightface's verification files: a pickle of (encoded images, two a pair; whether each pair is one person)."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError

PROTOCOL = 4


def write_bin(path: str | os.PathLike[str], images: Sequence[bytes], issame: Sequence[bool]) -> None:
    """Writes a `.bin` atomically: the file appears whole or not at all, with the same bytes for the same content.

    Args:
        path: the file to write; an existing one is replaced.
        images: encoded JPEG or PNG images; 2i and 2i+1 are pair i.
        issame: for each pair, whether both images show one person.

    Raises:
        UserError: there are not two images a pair, an image is empty, or the file cannot be written.
    """
    target = Path(path)
    if len(images) != 2 * len(issame):
        raise UserError(
            f"{target}: {len(issame)} pairs need {2 * len(issame)} images, found {len(images)}; give two images a pair"
        )
    empty = next((place for place, image in enumerate(images) if len(image) == 0), None)
    if empty is not None:
        raise UserError(f"{target}: image {empty} is empty; give encoded JPEG or PNG bytes")
    content = ([bytes(image) for image in images], [bool(same) for same in issame])
    try:
        _write_atomically(target, content)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror}); nothing was kept") from error


def _write_atomically(target: Path, content: tuple[list[bytes], list[bool]]) -> None:
    handle, draft = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            pickler = pickle.Pickler(file, protocol=PROTOCOL)
            pickler.fast = True  # no memo: equal content gives equal bytes, whichever objects the caller shares
            pickler.dump(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(draft, 0o644)
        os.replace(draft, target)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
