"""Several machines: two launchers on one host, each with two processes, as one run of four ranks; and the launch scripts."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.commands import metrics, run, train
from tests.shared_files import ROOT
from tests.world import free_port

SCRIPT = "scripts/train_two_nodes.sh"


def _arguments(demo_set: Path, output: Path) -> list[str]:
    # A classifier that samples and a queue: everything that is sharded takes part.
    return ["tests/tiny_config", f"rec={demo_set}", f"output={output}", "max_steps=3", "sample_rate=0.5", "queue_size=30"]


def _two_nodes(demo_set: Path, output: Path) -> None:
    environment = {
        **os.environ,
        "RDZV": f"127.0.0.1:{free_port()}",
        "NPROC": "2",
        "MAX_RESTARTS": "0",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }

    def launch(node: int) -> subprocess.Popen[str]:
        command = ["bash", SCRIPT, str(node), *_arguments(demo_set, output)]
        out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **out)

    nodes = [launch(0), launch(1)]
    try:
        printed = [node.communicate(timeout=200)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(printed)[-4000:]


def test_two_nodes_of_two_ranks_equal_one_of_four(demo_set, tmp_path):
    done = train(*_arguments(demo_set, tmp_path / "one"), ranks=4)
    assert done.returncode == 0, done.stderr[-3000:]
    _two_nodes(demo_set, tmp_path / "two")
    names = ("loss", "loss_classification", "loss_contrastive", "gradient_norm")
    one, two = ([[line[name] for name in names] for line in metrics(tmp_path / folder)] for folder in ("one", "two"))
    assert len(one) == 3 and one == two


def test_launch_scripts_print_their_usage():
    for script, word in ((SCRIPT, "RDZV=HOST:PORT"), ("scripts/slurm_train.sh", "sbatch")):
        done = run("bash", script)
        assert done.returncode == 2 and word in done.stderr, done.stderr
