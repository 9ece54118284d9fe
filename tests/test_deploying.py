"""The version, and scripts/deploy/ as far as it can be checked without a container engine and a cluster."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import train
from recognition import __version__
from tests.shared_files import ROOT
from tests.test_architecture import TOP_LEVEL

DEPLOY = ROOT / "scripts/deploy"


def test_one_version(capsys):
    """In the program, the change log and the citation."""
    with pytest.raises(SystemExit) as end:
        train._options(["--version"])
    assert (end.value.code, capsys.readouterr().out) == (0, f"{__version__}\n")
    assert re.search(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == __version__
    assert re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1] == __version__


def _program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


def _left_out(folder: str, names: list[str]) -> list[str]:
    """What Dockerfile.dockerignore leaves out of a folder."""
    patterns = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    deep = shutil.ignore_patterns(*(pattern[3:] for pattern in patterns if pattern.startswith("**/")))(folder, names)
    return [*deep, *patterns] if Path(folder) == ROOT else list(deep)


def test_the_dockerfile_replayed_in_an_empty_folder(tmp_path):
    """Its COPY and RUN instructions, with stand-ins for apt-get and pip; then the image's command."""
    log, root = tmp_path / "log", str(tmp_path)
    _program(tmp_path / "bin/apt-get", f'echo "apt-get $*" >>{log}')
    pip = f'if [ "$2" = pip ]; then echo "$*" >>{log}; else exec {sys.executable} "$@"; fi'
    _program(tmp_path / "opt/venv/bin/python", pip)
    environment = {**os.environ, "PATH": f"{root}/bin:{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": ""}
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", "").replace("=/tmp", f"={root}").replace("/opt/", f"{root}/opt/")
    command, here = [], tmp_path
    for line in text.splitlines():
        instruction, _, rest = line.partition(" ")
        if instruction == "ENV":
            environment |= dict(pair.split("=", 1) for pair in shlex.split(rest))
        elif instruction == "WORKDIR":
            here = Path(rest)
            here.mkdir(parents=True)
        elif instruction == "COPY":
            *sources, target = rest.split()
            for source in sources:
                into = here / target
                if source == ".":
                    shutil.copytree(ROOT, into, ignore=_left_out, dirs_exist_ok=True)
                else:
                    into.mkdir(parents=True, exist_ok=True)
                    shutil.copy(ROOT / source, into)
        elif instruction == "RUN":
            subprocess.run(["bash", "-c", rest], cwd=here, env=environment, check=True, timeout=60)
        elif instruction == "ENTRYPOINT":
            command = json.loads(rest)
        else:
            assert instruction in ("", "ARG", "FROM", "USER", "CMD") or instruction.startswith("#"), line
    assert {path.name for path in here.iterdir()} >= TOP_LEVEL and not (here / ".git").exists()
    assert command[:3] == ["tini", "-g", "--"]
    show = [*command[3:], "python", "train.py", "configs/vgg2_r34_qg", "--show"]
    done = subprocess.run(show, cwd=here, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and "val_targets" in done.stdout, done.stderr
    assert log.read_text().count("--requirement requirements.txt") == 1 and "tini" in log.read_text()


def test_the_apptainer_recipe_has_the_same_contents():
    recipe = (DEPLOY / "apptainer.def").read_text()
    sections = {name: text for name, text in re.findall(r"^%(\w+)\n(.*?)(?=^%|\Z)", recipe, re.MULTILINE | re.DOTALL)}
    copied = [line.split() for line in sections["files"].splitlines() if line]
    assert {source for source, _ in copied} == TOP_LEVEL and {target for _, target in copied} == {"/opt/qgface/"}
    (base,) = re.findall(r"^ARG BASE=(.+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert f"BASE={base}\n" in sections["arguments"]
    assert "/opt/qgface/scripts/deploy/install.sh" in sections["post"] and "VENV=/opt/venv" in sections["environment"]


@pytest.fixture
def launcher(tmp_path):
    """A folder in which scripts/train_two_nodes.sh prints its arguments, then does what the test writes into `act`."""
    script = 'echo "$RDZV $NNODES $*"; source ./act'
    _program(tmp_path / "scripts/train_two_nodes.sh", script)
    (tmp_path / "act").write_text("")
    return tmp_path


def _pod() -> dict:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed: ./run.sh docs installs it")
    job = yaml.safe_load((DEPLOY / "pytorchjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    replicas = job["spec"]["pytorchReplicaSpecs"]
    assert replicas["Master"]["replicas"] == 1 and replicas["Master"]["template"] == replicas["Worker"]["template"]
    (container,) = replicas["Worker"]["template"]["spec"]["containers"]
    assert container["name"] == "pytorch"  # the operator looks for it
    volumes = {volume["name"] for volume in replicas["Worker"]["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    return container


@pytest.mark.parametrize(
    ("act", "code"),
    [
        ('touch "$OUTPUT/results.json"', 0),  # finished
        ("trap 'exit 0' TERM; touch ready; while :; do sleep 0.01; done", 1),  # told to stop: saves, and the pod restarts
        ("exit 2", 2),
    ],
)
def test_a_pod_succeeds_only_with_results(launcher, act, code):
    container = _pod()
    (launcher / "act").write_text(act)
    given = {"MASTER_ADDR": "qgface-master-0", "MASTER_PORT": "23456", "WORLD_SIZE": "4", "RANK": "3", "OUTPUT": str(launcher)}
    arguments = [text.replace("$(OUTPUT)", given["OUTPUT"]) for text in container["args"]]
    assert container["command"][:3] == ["tini", "-g", "--"]  # -g: a signal reaches the process group
    command = [*container["command"][3:], *arguments]
    with subprocess.Popen(
        command, cwd=launcher, env={**os.environ, **given}, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as pod:
        if "TERM" in act:
            while not (launcher / "ready").exists():
                time.sleep(0.01)
            os.killpg(pod.pid, signal.SIGTERM)
        printed = pod.communicate(timeout=20)[0]
    assert pod.returncode == code
    assert printed.strip() == f"qgface-master-0:23456 4 3 configs/vgg2_r34_qg rec=/data/vgg2 output={launcher}"


@pytest.mark.parametrize("image", ["", "qg face.sif"])
def test_the_slurm_job(launcher, image):
    for name, text in {
        "scontrol": "printf 'a1\\na2\\n'",
        "srun": 'shift; SLURM_NODEID=1 exec "$@"',
        "apptainer": 'echo "in $3"; shift 3; exec "$@"',
    }.items():
        _program(launcher / "bin" / name, text)
    job = {"SLURM_JOB_ID": "20007", "SLURM_JOB_NODELIST": "a[1-2]", "SLURM_NNODES": "2", "SLURM_SUBMIT_DIR": str(launcher)}
    environment = {**os.environ, **job, "PATH": f"{launcher}/bin:{os.environ['PATH']}", "CONTAINER": image}
    command = ["bash", str(ROOT / "scripts/slurm_train.sh"), "configs/lfw_qg", "output=/runs/a b"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20)
    expected = "a1:20007 2 1 configs/lfw_qg output=/runs/a b\n"
    assert (done.returncode, done.stdout) == (0, f"in {image}\n{expected}" if image else expected), done.stderr
