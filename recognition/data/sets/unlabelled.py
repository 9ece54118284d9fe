"""Unlabelled photos (`unlabelled=`): a flat folder of aligned faces, or record files, whose labels are ignored."""

from __future__ import annotations

from pathlib import Path

from recognition.data.dataset import FaceDataset
from recognition.data.sets.pictures import PictureFaces
from utils.errors import UserError
from utils.images import LeftOut, scan_folder
from utils.labels import UNLABELLED


class UnlabelledRecords(FaceDataset):
    """Record files whose labels are ignored."""

    def read(self, image: int) -> tuple[bytes, int]:
        shard, position = self.locate(image)
        payload, _ = self.shards[shard].image_at(position)
        if not payload:
            raise self.record_error(image, "contains no image; pack or index the file again")
        return payload, UNLABELLED


def open_unlabelled(path: str, *, strict: bool) -> FaceDataset:
    """The unlabelled images that `path` names. strict: as for `FaceDataset`.

    Raises UserError if they cannot be opened, or if a folder of images has subfolders: those may be identities.
    """
    folder = Path(path)
    if not folder.is_dir() or any(folder.glob("*.rec")):
        return UnlabelledRecords(folder, strict=strict)
    left_out = LeftOut()
    names, folders = scan_folder(folder, left_out)
    if folders:
        raise UserError(
            f"{folder}: unlabelled images must be in one flat folder, but it has subfolders ({folders[0]} is one of "
            f"{len(folders)}); move the images into one folder, or use rec= if a subfolder is an identity"
        )
    left_out.warn(folder)
    if not names:
        raise UserError(f"{folder}: contains neither images nor .rec files; give a flat folder of aligned faces, or a .rec file")
    return PictureFaces(folder, folder, names, [UNLABELLED] * len(names), None, strict)
