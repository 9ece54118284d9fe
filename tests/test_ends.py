"""How programs end: signals, Ctrl-C, a lost launcher, limits of the machine. Real processes, real signals."""

from __future__ import annotations

import os
import pty
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from recognition.checkpoints import store
from tests.commands import run
from tests.plug import CONFIG, Run
from tests.shared_files import ROOT

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
LAUNCH = ("-m", "scripts.launch", "--standalone", "--nproc_per_node=2")


@pytest.fixture(scope="module")
def trained(demo_set, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("trained") / "run"
    Run(demo_set, output, "max_steps=2", "val_targets=['demo_lq']").succeed()
    return output


def _start(*arguments: object, **options: object) -> subprocess.Popen[str]:
    """A Python program, started from the project's root on one thread, with its output in pipes."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen([sys.executable, *map(str, arguments)], cwd=ROOT, env=env, text=True, **streams)  # type: ignore[call-overload]


def _training(demo_set: Path, output: Path, *settings: str) -> list[str]:
    return ["train.py", CONFIG, f"rec={demo_set}", f"output={output}", "num_workers=1", *settings]


def _wait(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


def _descendants(process: int) -> list[int]:
    try:
        children = [int(pid) for path in Path(f"/proc/{process}/task").glob("*/children") for pid in path.read_text().split()]
    except FileNotFoundError:
        return []
    return children + [below for child in children for below in _descendants(child)]


def _lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# -------------------------------------------------------------------------------------------------- Ctrl-C


@pytest.mark.parametrize(
    "command",
    ["train.py --help", "-m eval --help", "-m recognition.data.pack --help", "-m recognition.data.demo_faces --help",
     "-m scripts.launch --help"],
)  # fmt: skip
def test_ctrl_c_during_the_imports(command):
    for _ in range(3):
        process = _start(*command.split())
        _wait(lambda: "numpy" in Path(f"/proc/{process.pid}/maps").read_text())  # noqa: B023
        process.send_signal(signal.SIGINT)
        assert (process.communicate(timeout=60)[1], process.returncode) == ("error: interrupted\n", 130)


@pytest.mark.parametrize("launcher", [(), LAUNCH])
def test_ctrl_c_in_an_evaluation(demo_set, trained, tmp_path, launcher):
    cache = tmp_path / "cache"
    arguments = ("--checkpoint", trained, "--bins", demo_set / "demo_lq.bin", "--bootstrap", 10**8, "--cache", cache)
    process = _start(*launcher, "-m", "eval", "verify", *arguments)
    _wait(lambda: list(cache.glob("*.np*")))  # it has embedded the images, and resamples pairs
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert (process.communicate(timeout=60)[1], process.returncode) == ("error: interrupted\n", 130)


# -------------------------------------------------------------------------------------------------- the terminal


def test_closing_the_terminal_saves_the_run(demo_set, tmp_path):
    """Its output is gone then, too: nothing can be printed any more."""
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(ROOT)
        os.environ["OMP_NUM_THREADS"] = "1"
        os.execv(sys.executable, [sys.executable, *_training(demo_set, tmp_path, "num_epoch=1000")])
    seen = b""
    while b"step      2/" not in seen:
        seen += os.read(terminal, 4096)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert store.newest(tmp_path) is not None and '"stopped_by": "SIGHUP"' in (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.parametrize("launcher", [(), LAUNCH])
def test_nohup_lets_a_run_survive_its_terminal(demo_set, tmp_path, launcher):
    command = [*launcher, *_training(demo_set, tmp_path, "max_steps=40", "val_targets=[]")]
    process = _start(*command, preexec_fn=partial(signal.signal, signal.SIGHUP, signal.SIG_IGN))
    _wait(lambda: '"loss"' in _text(tmp_path / "metrics.jsonl"))
    process.send_signal(signal.SIGHUP)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and "SIGHUP" not in errors and (tmp_path / "results.json").exists(), errors


def test_a_run_survives_the_shell_that_started_it(demo_set, tmp_path):
    command = " ".join([sys.executable, *_training(demo_set, tmp_path, "max_steps=2")])
    subprocess.run(["sh", "-c", f"{command} >/dev/null 2>&1 &"], cwd=ROOT, check=True)
    _wait((tmp_path / "results.json").exists)


def test_a_run_survives_the_reader_of_its_output(demo_set, tmp_path):
    command = " ".join([sys.executable, *_training(demo_set, tmp_path, "max_steps=6")])
    done = run("bash", "-o", "pipefail", "-c", f"{command} | head -1")
    assert (done.returncode, done.stderr) == (0, "") and (tmp_path / "results.json").exists()


@pytest.mark.parametrize("command", ["eval runs {run}", "recognition.data.pack verify {set}"])
def test_a_command_ends_with_the_reader_of_its_output(demo_set, trained, command):
    command = command.format(run=trained, set=demo_set)
    done = run("bash", "-o", "pipefail", "-c", f"{sys.executable} -m {command} | true")
    assert (done.returncode, done.stderr) == (141, "")


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


# -------------------------------------------------------------------------------------------------- the launcher


def test_ranks_and_workers_end_with_a_killed_launcher(demo_set, tmp_path):
    with open(tmp_path / "log", "w") as log:
        process = _start(*TORCHRUN, *_training(demo_set, tmp_path / "run", "num_epoch=10000"), stdout=log, stderr=log)
    _wait(lambda: "step      2/" in _text(tmp_path / "log"))
    below = _descendants(process.pid)
    assert len(below) == 4  # two ranks, each with a worker
    process.kill()
    process.wait()
    _wait(lambda: not any(map(_lives, below)), 20)
    text = _text(tmp_path / "log")
    assert text.count("error:") == 1 and f"the launcher (process {process.pid}) has ended" in text and "Traceback" not in text


@pytest.mark.parametrize(("launcher", "tail"), [(TORCHRUN, 3), (LAUNCH, 1)])
def test_a_users_mistake_is_at_the_end_of_the_screen(tmp_path, launcher, tail):
    """torchrun's summary contains it; our launcher prints nothing else."""
    mistake = f"error: {tmp_path}/set: no such file or folder; give a .rec file, or a folder with train.rec or *.rec shards"
    done = run(sys.executable, *launcher, "train.py", CONFIG, f"rec={tmp_path}/set")
    assert any(line.endswith(mistake) for line in done.stderr.splitlines()[-tail:]), done.stderr
    assert launcher == TORCHRUN or (done.stderr, done.returncode) == (f"{mistake}\n", 2)


def test_our_launcher_names_a_killed_rank(demo_set, tmp_path):
    process = _start(*LAUNCH, *_training(demo_set, tmp_path, "num_epoch=10000"))
    _wait(lambda: '"loss"' in _text(tmp_path / "metrics.jsonl"))
    rank = _descendants(process.pid)[0]
    os.kill(rank, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    last = errors.splitlines()[-1]
    assert process.returncode == 137 and f"(process {rank}) was ended by SIGKILL, usually for lack of memory" in last, errors
    assert "Traceback" not in errors


# -------------------------------------------------------------------------------------------------- limits


def _limited(files: int, *command: object) -> subprocess.CompletedProcess[str]:
    process = _start(*command, preexec_fn=partial(resource.setrlimit, resource.RLIMIT_NOFILE, (files, files)))
    output, errors = process.communicate(timeout=120)
    return subprocess.CompletedProcess([], process.returncode, output, errors)


@pytest.mark.parametrize("files", [14, 18, 22, 24])
def test_too_many_open_files_in_training(demo_set, tmp_path, files):
    _names_its_remedy(_limited(files, *_training(demo_set, tmp_path / "run", "num_workers=4", "max_steps=2")), files)


def test_too_many_open_files_in_evaluation_and_packing(demo_set, trained, tmp_path):
    _names_its_remedy(_limited(8, "-m", "eval", "verify", "--checkpoint", trained, "--bins", demo_set / "demo_lq.bin"), 8)
    for files in (8, 12, 18):  # the last one in the middle of starting the workers
        _names_its_remedy(_limited(files, "-m", "recognition.data.pack", "verify", demo_set, "--workers", 4), files)


def _names_its_remedy(done: subprocess.CompletedProcess[str], files: int) -> None:
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("warning:")]
    assert done.returncode == 2 and line.startswith("error: ") and "remove it" not in line, done.stderr
    assert "Too many open files" in line and f"; this process may open {files}: raise the limit with `ulimit -n" in line, line


def test_a_checkpoint_that_a_limit_makes_unreadable_is_not_taken_for_damaged(demo_set, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    (folder,) = store.complete_checkpoints(tmp_path / "run")
    for files in range(13, 34, 4):
        done = _limited(files, *_training(demo_set, tmp_path / "run", "num_workers=0", "max_steps=2"))
        assert folder.exists() and "damaged" not in done.stdout + done.stderr, done.stderr
        if done.returncode == 0:
            break


# -------------------------------------------------------------------------------------------------- paths, systems, warnings


def test_the_home_folder_is_expanded(demo_set, tmp_path):
    (tmp_path / "set").symlink_to(demo_set)
    given = ("rec=~/set", "output=~/run", "val_dir=~/set", "val_targets=['~/set/demo_lq.bin']", "max_steps=1", "num_workers=0")
    done = run(sys.executable, "train.py", CONFIG, *given, HOME=str(tmp_path))
    assert done.returncode == 0 and (tmp_path / "run" / "results.json").exists(), done.stderr
    verify = ("eval", "verify", "--checkpoint=~/run", "--bins", "~/set/demo_lq.bin", "--json=~/figures.json")
    assert run(sys.executable, "-m", *verify, HOME=str(tmp_path)).returncode == 0 and (tmp_path / "figures.json").exists()
    assert run(sys.executable, "-m", "recognition.data.pack", "verify", "~/set", HOME=str(tmp_path)).returncode == 0
    lost = run(sys.executable, "train.py", CONFIG, "rec=~nobody-at-all/set")
    assert lost.returncode == 2 and "there is no user 'nobody-at-all'" in lost.stderr


ELSEWHERE = """
import runpy, sys
sys.platform, sys.argv[:] = "darwin", sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("program", ["train.py", "eval/__main__.py", "recognition/data/pack/__main__.py", "scripts/launch.py"])
def test_another_system_is_refused(program):
    done = run(sys.executable, "-c", ELSEWHERE, program, PYTHONPATH=str(ROOT))
    assert (done.returncode, done.stderr) == (2, "error: this software runs on Linux only; this system is darwin\n")


def test_run_sh_refuses_another_system(tmp_path):
    (tmp_path / "uname").write_text("#!/bin/sh\necho Darwin\n")
    (tmp_path / "uname").chmod(0o755)
    done = run("./run.sh", "setup", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert (done.returncode, done.stderr) == (2, "error: this software runs on Linux only; this system is Darwin\n")


def test_no_library_warns(demo_set, tmp_path):
    """With a home folder that cannot be written, as in containers, and a classifier whose gradients have other strides."""
    settings = ("max_steps=2", "num_workers=0", "channels_last=False", "val_targets=['demo_lq']", "diagnose_every=1")
    output = tmp_path / "run"
    commands = [
        [*LAUNCH, *_training(demo_set, output, *settings)],
        ["-m", "eval", "verify", "--checkpoint", output, "--bins", demo_set / "demo_lq.bin"],
        ["-m", "eval", "export", "--checkpoint", output, "--out", tmp_path / "e.onnx"],
    ]
    for command in commands:
        done = run(sys.executable, *map(str, command), fresh=True, HOME="/dev/null")
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
