"""The manifest of a checkpoint: size and BLAKE2b checksum of each of its files, written last.

A folder without a manifest is not a checkpoint. A checkpoint is damaged if a file differs from its entry, is missing, or
holds tensors without being listed; damaged ones are not loaded. Each rank computes the checksums of the files that it
wrote, and ranks may share the work of checking. (RFC 7693. Checksums find damage, not malice: they are not signed.)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from utils.errors import UserError, is_limit
from utils.files import sync

FILE = "manifest.json"
_FORMAT = 1
_DIGEST_BYTES = 32

Entry = dict[str, int | str]
"""{"bytes": size, "blake2b": hexadecimal checksum} of one file."""


def entries_of(paths: Iterable[Path]) -> dict[str, Entry]:
    """File name -> entry of files that were just written; waits until they are on the disk."""
    entries = {}
    for path in paths:
        sync(path)
        entries[path.name] = _entry_of(path)
    return entries


def write(folder: Path, entries: Mapping[str, Entry]) -> None:
    """Declare the folder complete; waits until it is on the disk."""
    document = {"format": _FORMAT, "files": dict(sorted(entries.items()))}
    (folder / FILE).write_text(json.dumps(document, indent=1) + "\n")
    sync(folder / FILE)
    sync(folder)


def damage(folder: Path, part: int = 0, parts: int = 1) -> str:
    """What is wrong with a checkpoint, as half a sentence; "" if nothing is.

    Names and sizes are always compared, checksums only of every `parts`-th file from number `part` on.
    """
    try:
        entries = _read(folder)
        missing = sorted(name for name in entries if not (folder / name).is_file())
        if missing:
            return f"{missing[0]} is missing"
        unlisted = sorted(path.name for path in folder.glob("*.safetensors") if path.name not in entries)
        if unlisted:
            return f"{unlisted[0]} is not in the manifest"
        for number, (name, entry) in enumerate(sorted(entries.items())):
            size = (folder / name).stat().st_size
            if size != entry["bytes"]:
                return f"{name} has {size} bytes, {entry['bytes']} according to the manifest"
            if number % parts == part and _entry_of(folder / name) != entry:
                return f"the checksum of {name} is wrong"
    except OSError as fault:
        if is_limit(fault) or isinstance(fault, PermissionError):
            raise UserError(f"{fault.filename or folder}: cannot be read ({fault.strerror})") from fault
        return f"{fault.filename or folder}: {fault.strerror}"
    except _MalformedError:
        return f"{FILE} is damaged"
    return ""


class _MalformedError(Exception):
    """The manifest is malformed."""


def _read(folder: Path) -> dict[str, Entry]:
    try:
        document = json.loads((folder / FILE).read_bytes())
    except (ValueError, RecursionError) as fault:  # ValueError: also bytes that are not UTF-8
        raise _MalformedError from fault
    entries = document.get("files") if isinstance(document, dict) and document.get("format") == _FORMAT else None
    if not isinstance(entries, dict) or not entries:
        raise _MalformedError
    for name, entry in entries.items():
        good = isinstance(entry, dict) and isinstance(entry.get("bytes"), int) and isinstance(entry.get("blake2b"), str)
        if not good or name in ("", ".", "..") or Path(name).name != name or "\0" in name:  # stay inside the folder
            raise _MalformedError
    return entries


def _entry_of(path: Path) -> Entry:
    with open(path, "rb", buffering=0) as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=_DIGEST_BYTES))
        return {"bytes": file.tell(), "blake2b": digest.hexdigest()}
