"""The manifest of a checkpoint: size and BLAKE2b sum of each of its files, written last.

A folder without a manifest is no checkpoint. One whose manifest disagrees with a file, or that holds tensors which the
manifest does not list, is damaged and is not loaded. Each rank sums the files that it wrote; whoever reads may divide the
work over the ranks likewise. (RFC 7693; sums find damage, not malice: they are not signed.)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from utils.files import sync

MANIFEST = "manifest.json"
_FORMAT = 1
_DIGEST_BYTES = 32

Entry = dict[str, int | str]
"""{"bytes": size, "blake2b": hexadecimal sum} of one file."""


def entry_of(path: Path) -> Entry:
    """Size and checksum of a file."""
    with open(path, "rb", buffering=0) as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=_DIGEST_BYTES))
        return {"bytes": file.tell(), "blake2b": digest.hexdigest()}


def entries_of(paths: Iterable[Path]) -> dict[str, Entry]:
    """File name -> entry, of files that were just written; waits until they are on the disk."""
    entries = {}
    for path in paths:
        sync(path)
        entries[path.name] = entry_of(path)
    return entries


def write(folder: Path, entries: Mapping[str, Entry]) -> None:
    """Declares the folder whole. Durable when this returns."""
    document = {"format": _FORMAT, "files": dict(sorted(entries.items()))}
    (folder / MANIFEST).write_text(json.dumps(document, indent=1) + "\n")
    sync(folder / MANIFEST)
    sync(folder)


def exists(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def damage(folder: Path, part: int = 0, parts: int = 1) -> str:
    """What is wrong with a checkpoint, as half a sentence, or nothing. Of the files, only every `parts`-th is summed,
    beginning with number `part`; sizes and names are always compared."""
    try:
        files = _read(folder)
        missing = sorted(name for name in files if not (folder / name).is_file())
        if missing:
            return f"{missing[0]} is missing"
        unlisted = sorted(path.name for path in folder.glob("*.safetensors") if path.name not in files)
        if unlisted:
            return f"{unlisted[0]} is not in the manifest"
        for number, (name, entry) in enumerate(sorted(files.items())):
            size = (folder / name).stat().st_size
            if size != entry["bytes"]:
                return f"{name} has {size} bytes, the manifest says {entry['bytes']}"
            if number % parts == part and entry_of(folder / name) != entry:
                return f"the checksum of {name} is wrong"
    except OSError as fault:
        return f"{fault.filename or folder}: {fault.strerror}"
    except _MalformedError:
        return f"{MANIFEST} is damaged"
    return ""


class _MalformedError(Exception):
    """A manifest that is none."""


def _read(folder: Path) -> dict[str, Entry]:
    try:
        document = json.loads((folder / MANIFEST).read_bytes())
    except (ValueError, RecursionError) as fault:  # also what is not UTF-8
        raise _MalformedError from fault
    files = document.get("files") if isinstance(document, dict) and document.get("format") == _FORMAT else None
    if not isinstance(files, dict) or not files:
        raise _MalformedError
    for name, entry in files.items():
        good = isinstance(entry, dict) and isinstance(entry.get("bytes"), int) and isinstance(entry.get("blake2b"), str)
        if not good or name in ("", ".", "..") or Path(name).name != name or "\0" in name:  # the manifest stays in its folder
            raise _MalformedError
    return files
