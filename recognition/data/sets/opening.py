"""Opens what `rec` names."""

from __future__ import annotations

from pathlib import Path

from recognition.data.dataset import FaceDataset
from recognition.data.sets.pictures import is_pictures, open_pictures
from recognition.data.sets.synthetic import SYNTHETIC, SyntheticFaces
from recognition.data.sets.union import SEPARATE, UnionFaces
from utils.config import Config


def open_faces(path: str | Path, *, strict: bool = True) -> FaceDataset:
    """One set of labelled images: packed, a folder with one subfolder per identity, or a text list. Raises UserError."""
    path = Path(path)
    if path.exists() and is_pictures(path):
        return open_pictures(path, strict=strict)
    return FaceDataset(path, strict=strict)


def training_set(config: Config) -> FaceDataset:
    """The images that `rec` names. Raises UserError if they cannot be opened."""
    if config.rec == SYNTHETIC:
        return SyntheticFaces(config.num_image, config.num_classes, config.seed)
    paths, strict = config.data_sets, config.on_error == "stop"
    if len(paths) == 1:
        return open_faces(paths[0], strict=strict)
    identities = config.rec_identities or (SEPARATE,)
    return UnionFaces(
        [open_faces(path, strict=strict) for path in paths],
        identities if len(identities) > 1 else identities * len(paths),
        config.rec_proportions or (1.0,) * len(paths),
    )
