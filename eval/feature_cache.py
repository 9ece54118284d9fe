"""A cache of features, keyed by the checkpoint and by the files that they were computed from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from utils import dist
from utils.errors import UserError
from utils.files import UNREADABLE_NPZ, new_file


def fingerprint(paths: Iterable[str | Path]) -> str:
    """A hash of the files' full names, sizes and modification times (nanoseconds); for folders, of all files in them.

    Contents are not read: IJB-C has 469,375 images. Raises UserError if a path does not exist.
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


class FeatureCache:
    """A folder of .npz files, one per encoder and image set."""

    def __init__(self, folder: Path, encoder_key: str):
        self.folder, self.encoder_key = folder, encoder_key

    def path(self, name: str, source_key: str) -> Path:
        """The file for the features of set `name`, computed from files with the fingerprint `source_key`."""
        key = hashlib.sha256(f"{self.encoder_key}\n{source_key}".encode()).hexdigest()[:24]
        return self.folder / f"{name}-{key}.npz"

    def get(self, name: str, source_key: Callable[[], str], compute: Callable[[], np.ndarray]) -> np.ndarray:
        """The cached features [N, D], or those of `compute()` (called on all ranks), which are then cached.

        Rank 0 decides whether they are cached. If they are, the other ranks receive an empty array.
        """
        path = self.path(name, dist.on_first_rank(source_key))
        if dist.on_first_rank(path.is_file):
            rows = [np.empty((0, 0), np.float32)]
            dist.on_first_rank(lambda: rows.append(self._load(path)))
            return rows[-1]
        features = compute()
        dist.on_first_rank(lambda: self._store(path, features))
        return features

    @staticmethod
    def _load(path: Path) -> np.ndarray:
        try:
            with np.load(path, allow_pickle=False) as file:
                features = file["features"]
        except UNREADABLE_NPZ as fault:
            raise UserError(f"{path}: the cached features cannot be read ({fault}); remove the file") from fault
        if features.ndim != 2 or features.dtype.kind != "f" or not np.isfinite(features).all():
            raise UserError(f"{path}: the cached features are not finite numbers [images, size]; remove the file")
        print(f"features: {path}")
        return features

    @staticmethod
    def _store(path: Path, features: np.ndarray) -> None:
        with new_file(path, parents=True) as partial, partial.open("wb") as file:
            np.savez(file, features=features)
