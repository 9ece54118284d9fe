"""Features of an image set, computed once and kept: keyed by the checkpoint and by the files that they came from."""

from __future__ import annotations

import hashlib
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from utils import dist
from utils.errors import UserError
from utils.files import new_file


def fingerprint(paths: Iterable[str | Path]) -> str:
    """A hash of the files' full names, sizes and times of last change (nanoseconds); of a folder, all that is in it.

    Contents are not read: IJB-C holds 469,375 images. Raises UserError where a path does not exist.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            _add(digest, Path(path).resolve())
        except OSError as fault:
            raise UserError(f"{path}: {fault.strerror}") from fault
    return digest.hexdigest()


def _add(digest, path: Path) -> None:
    if path.is_dir():
        with os.scandir(path) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                _add(digest, Path(entry.path))
        return
    status = path.stat()
    digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())


UNREADABLE_NPZ = (
    OSError, ValueError, KeyError, EOFError, MemoryError, NotImplementedError, RuntimeError, SyntaxError,
    struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What numpy and zipfile raise on a damaged .npz; which one depends on where the damage lies."""


class FeatureCache:
    """A folder of .npz files, one for each (encoder, image set)."""

    def __init__(self, folder: Path, encoder_key: str):
        self.folder, self.encoder_key = folder, encoder_key

    def path(self, name: str, source_key: str) -> Path:
        """Where the features of set `name`, made from files of this fingerprint, are or will be."""
        key = hashlib.sha256(f"{self.encoder_key}\n{source_key}".encode()).hexdigest()[:24]
        return self.folder / f"{name}-{key}.npz"

    def get(self, name: str, source_key: Callable[[], str], compute: Callable[[], np.ndarray]) -> np.ndarray:
        """The kept features [N, D], or those of `compute()` (on all ranks), which are then kept.

        Whether they are there is decided by rank 0; the other ranks get an empty array when they are.
        """
        path = self.path(name, dist.broadcast_object(source_key() if dist.rank_and_world()[0] == 0 else None))
        if dist.broadcast_object(path.is_file()):
            box: list[np.ndarray] = []
            dist.on_first_rank(lambda: box.append(self._load(path)))
            return box[0] if box else np.empty((0, 0), np.float32)
        features = compute()
        dist.on_first_rank(lambda: self._store(path, features))
        return features

    @staticmethod
    def _load(path: Path) -> np.ndarray:
        try:
            with np.load(path, allow_pickle=False) as file:
                features = file["features"]
        except UNREADABLE_NPZ as fault:
            raise UserError(f"{path}: kept features that cannot be read ({fault}); remove the file") from fault
        print(f"features: {path}")
        return features

    @staticmethod
    def _store(path: Path, features: np.ndarray) -> None:
        with new_file(path, parents=True) as partial, partial.open("wb") as file:
            np.savez(file, features=features)


def cached(cache: FeatureCache | None, name: str, source_key: Callable[[], str], compute: Callable[[], np.ndarray]) -> np.ndarray:
    """`cache.get`, or `compute()` where there is no cache."""
    return compute() if cache is None else cache.get(name, source_key, compute)
