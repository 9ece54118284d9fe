"""utils/files.py: files and folders appear whole or not at all."""

from __future__ import annotations

import argparse
import errno
import os
from pathlib import Path

import pytest

from eval.commands.common import prepare_outputs
from utils.errors import UserError
from utils.files import new_file, new_folder, write_file


def test_a_write_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "made" / "a.json"
    write_file(path, "old", parents=True)
    write_file(path, "größer")
    assert path.read_text(encoding="utf-8") == "größer" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), RuntimeError("a bug"), KeyboardInterrupt()])
def test_a_failed_write_keeps_the_old_file(tmp_path: Path, fault: BaseException) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(b"old")
    expected = UserError if isinstance(fault, OSError) else type(fault)
    writing = new_file(path, label="--out a.npz", advice="free some space")
    with pytest.raises(expected) as raised, writing as partial:
        partial.write_bytes(b"half")
        raise fault
    if isinstance(fault, OSError):
        assert str(raised.value) == "--out a.npz: cannot be written (No space left on device); free some space"
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_created_only_on_request(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        write_file(tmp_path / "absent" / "a", b"")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_takes_the_place_of_an_empty_one_only(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with new_folder(tmp_path / "set") as draft:
        (draft / "a").write_text("1")
        assert not list((tmp_path / "set").iterdir())
    assert (tmp_path / "set" / "a").read_text() == "1" and list(tmp_path.iterdir()) == [tmp_path / "set"]
    with pytest.raises(UserError, match="exists already"), new_folder(tmp_path / "set"):
        pass


@pytest.mark.parametrize("address", ["s3://bucket/a", "gs://a", "file:///a"])
def test_addresses_are_not_taken_for_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (address, Path(address)):
        with pytest.raises(UserError, match="is an address"):
            write_file(path, b"", parents=True)
        with pytest.raises(UserError, match="is an address"), new_folder(path):
            pass
    with pytest.raises(UserError, match=f"--json {address}: is an address"):
        prepare_outputs(argparse.Namespace(json=address))
    assert list(tmp_path.iterdir()) == []
    write_file("a:b", b"")
