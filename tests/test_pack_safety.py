"""Kills, interruptions, full disks, hostile lists: no incomplete result under a final name, nothing outside the folder."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from recognition.data import FaceDataset
from recognition.data.pack.listing import inner_name
from recognition.data.pack.output import new_folder
from recognition.data.parallel import in_order, shared_object
from tests.pack_tools import encoded, make_people, pack, picture, read_files, start_pack, write_files
from tests.shared_files import ROOT
from utils.errors import UserError
from utils.files import path_inside, write_file


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3,000 pictures that have to be encoded: about a second of work."""
    folder = tmp_path_factory.mktemp("many") / "photos"
    picture_bytes = encoded(picture(1, 150, 140))
    write_files(folder, {f"p{number // 40:03d}/{number}.jpg": picture_bytes for number in range(3000)})
    return folder


def _processes_of(group: int) -> list[int]:
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended
            if int(fields[2]) == group and fields[0] != "Z":
                members.append(int(entry.name))
    return members


def _wait_until_gone(group: int, seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while _processes_of(group):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _wait_for_draft(folder: Path) -> None:
    end = time.monotonic() + 60
    while not list(folder.glob(".packed.*.partial")):
        assert time.monotonic() < end, "the command did not begin"
        time.sleep(0.01)


@pytest.mark.parametrize("delay", [0.0, 0.15, 0.4])
def test_a_kill_at_any_time_leaves_no_incomplete_set(tmp_path: Path, many: Path, delay: float) -> None:
    process = start_pack("folder", many, tmp_path / "packed", "--workers", 2, "--shards", 4, start_new_session=True)
    _wait_for_draft(tmp_path)
    time.sleep(delay)
    process.kill()
    process.communicate()
    assert _wait_until_gone(process.pid), "workers outlive their parent"
    if (tmp_path / "packed").exists():  # it finished before the signal
        assert len(FaceDataset(tmp_path / "packed")) == 3000
    else:
        with pytest.raises(UserError):
            FaceDataset(tmp_path / "packed")
    again = start_pack("folder", many, tmp_path / "whole", "--workers", 2, "--min-images", 41)
    assert again.communicate()[1].startswith("error:") and again.returncode == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_an_interrupted_command_cleans_up(tmp_path: Path, many: Path, number: signal.Signals, code: int) -> None:
    process = start_pack("folder", many, tmp_path / "packed", "--workers", 2, start_new_session=True)
    _wait_for_draft(tmp_path)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code, errors
    assert "interrupted; nothing was kept" in errors
    assert list(tmp_path.iterdir()) == [] and _wait_until_gone(process.pid)


def test_a_second_ctrl_c_does_not_wait_for_the_workers(tmp_path: Path, many: Path) -> None:
    process = start_pack("folder", many, tmp_path / "packed", "--workers", 2, start_new_session=True)
    _wait_for_draft(tmp_path)
    workers: list[int] = []
    while len(workers) < 2:
        workers = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    time.sleep(0.2)  # they work
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None  # it waits for what they are doing
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 130
    for worker in workers:
        os.kill(worker, signal.SIGCONT)
    assert _wait_until_gone(process.pid)


def test_a_file_size_limit_is_an_error_that_names_the_file(tmp_path: Path, many: Path) -> None:
    """The writer sees a full disk or quota in the same way."""
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (300_000, 300_000))
    process = start_pack("folder", many, tmp_path / "packed", "--workers", 2, preexec_fn=limit)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2, errors
    assert re.search(r"^error: .*train\.rec: cannot be written \(File too large\); nothing was kept$", errors, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of a quarter of a megabyte, if this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path, many: Path, small_disk: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\); nothing was kept"):
        pack("folder", many, small_disk / "packed")
    assert list(small_disk.iterdir()) == []
    make_people(tmp_path / "photos", {"ann": 60, "bob": 80})
    pack("folder", tmp_path / "photos", tmp_path / "packed")
    for command in ("unpack", "shuffle"):
        with pytest.raises(UserError, match=r"No space left on device"):
            pack(command, tmp_path / "packed", small_disk / "out", *(["--on-error", "skip"] if command == "unpack" else []))
        assert list(small_disk.iterdir()) == []
    pairs = "".join(f"ann/{k}.jpg bob/{k}.jpg 0\n" for k in range(60))
    (tmp_path / "pairs.txt").write_text(pairs)
    with pytest.raises(UserError, match=r"out\.bin: cannot be written \(No space left on device\)"):
        pack("pairs", tmp_path / "pairs.txt", tmp_path / "photos", small_disk / "out.bin")
    assert list(small_disk.iterdir()) == []


def test_an_existing_result_is_never_touched(tmp_path: Path) -> None:
    make_people(tmp_path / "photos", {"ann": 2})
    write_files(tmp_path / "packed", {"mine.txt": b"mine"})
    with pytest.raises(UserError, match="exists already"):
        pack("folder", tmp_path / "photos", tmp_path / "packed")
    assert read_files(tmp_path / "packed") == {"mine.txt": b"mine"}
    (tmp_path / "empty").mkdir()
    pack("folder", tmp_path / "photos", tmp_path / "empty")
    assert len(FaceDataset(tmp_path / "empty")) == 2


def test_lists_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    make_people(tmp_path / "photos", {"ann": 1, "bob": 1})
    pack("folder", tmp_path / "photos", tmp_path / "packed")
    images, classes = tmp_path / "packed/images.csv", tmp_path / "packed/classes.csv"
    for path in ("../../outside.jpg", f"{tmp_path}/outside.jpg", "ann/../../outside.jpg", "..\\outside.jpg", "a\x07.jpg"):
        images.write_text(f"image,label,path\n0,0,ann/0.jpg\n1,1,{path}\n")
        with pytest.raises(UserError, match=r"images\.csv: line 3"):
            pack("unpack", tmp_path / "packed", tmp_path / "out")
    images.unlink()
    for name in ("..", "../outside", f"{tmp_path}", "a/b", "", "."):
        classes.write_text(f"label,name,images\n0,ann,1\n1,{name},1\n")
        with pytest.raises(UserError, match=r"classes\.csv: line 3"):
            pack("unpack", tmp_path / "packed", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packed", "photos"]


def test_two_images_cannot_share_a_path(tmp_path: Path) -> None:
    make_people(tmp_path / "photos", {"ann": 2})
    pack("folder", tmp_path / "photos", tmp_path / "packed")
    (tmp_path / "packed/images.csv").write_text("image,label,path\n0,0,ann/0.jpg\n1,0,ann/0.jpg\n")
    with pytest.raises(UserError, match="two images have this name"):
        pack("unpack", tmp_path / "packed", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_inner_paths_and_names() -> None:
    assert str(path_inside("a/./b c.jpg", "")) == "a/b c.jpg" and inner_name("..a", "") == "..a"
    for text in ("", ".", "/", "..", "a/..", "a\nb", "a\\b"):
        with pytest.raises(UserError, match="list: line 3"):
            inner_name(text, "list: line 3")


def test_an_exception_removes_unfinished_output(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_folder(tmp_path / "out") as folder:
        (folder / "half").write_bytes(b"x")
        raise RuntimeError
    with pytest.raises(UserError, match="cannot be written"):
        write_file(tmp_path / "missing/file", b"x")
    assert list(tmp_path.iterdir()) == []


def test_output_of_a_killed_run_is_mentioned(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".out.abc.partial").mkdir()
    with new_folder(tmp_path / "out"):
        pass
    assert ".out.abc.partial: left by a run that was killed" in capfd.readouterr().err


def _add_shared(value: int) -> int:
    return value + len(shared_object())


def _die(value: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return value


def test_results_are_in_order_and_dead_workers_are_an_error() -> None:
    with in_order(_add_shared, range(100), 3, "adding", 100, shared="ab") as results:
        assert list(results) == list(range(2, 102))
    with pytest.raises(UserError, match="killed"), in_order(_die, range(5), 2, "dying", 5) as results:
        list(results)
    with pytest.raises(UserError, match="--workers 0"), in_order(_add_shared, [], 0, "", 0):
        pass


def test_items_are_only_taken_when_needed() -> None:
    """Only a few results wait in memory, however long the list is."""
    taken = 0

    def items():
        nonlocal taken
        for number in range(10_000):
            taken += 1
            yield number

    with in_order(_add_shared, items(), 2, "adding", 10_000, shared="") as results:
        next(results)
        assert taken <= 8


def test_the_commands_start_without_pytorch() -> None:
    """Its import takes longer than many of them."""
    code = "import sys; from recognition.data.pack.__main__ import make_parser; make_parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
