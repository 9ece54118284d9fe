#!/usr/bin/env bash
# Sets up on a fresh machine and runs:
#
#   ./run.sh                          the demo: makes faces, trains plainly and by QGFace, prints a table of both
#   ./run.sh test [pytest options]    the tests
#   ./run.sh train CONFIG [key=value] torchrun over all GPUs of this machine, or over its cores
#   ./run.sh setup                    set-up alone
#
# Needs Python 3.11 or later. PYTHON=... names the interpreter, VENV=... the environment's folder, NPROC=... the processes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

VENV=${VENV:-.venv}

fail() { echo "error: $*" >&2; exit 2; }

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.13 python3.12 python3.11 python3; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "Python 3.11 or later was not found; install it, or name it: PYTHON=/path/to/python3.11 $0"
}

setup() {
    local stamp="$VENV/.requirements" wanted
    wanted=$(cksum <requirements.txt)
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
        return
    fi
    echo "setting up $VENV (once)"
    if [ ! -x "$VENV/bin/python" ]; then
        "$(find_python)" -m venv "$VENV"
    fi
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
    echo "$wanted" >"$stamp"
}

# Processes to start: one for each GPU, else one for each core (two at most: small encoders gain little beyond).
processes() {
    "$VENV/bin/python" -c 'import os, torch
gpus = torch.cuda.device_count()
print(gpus or min(2, len(os.sched_getaffinity(0))))'
}

train() {
    local count cores
    count=${NPROC:-$(processes)}
    cores=$("$VENV/bin/python" -c 'import os; print(len(os.sched_getaffinity(0)))')
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > count ? cores / count : 1))}
    "$VENV/bin/python" -m torch.distributed.run --standalone --nproc_per_node="$count" train.py "$@"
}

demo() {
    "$VENV/bin/python" -m recognition.data.demo_faces --out data/demo --low-quality-share 0
    train configs/demo_baseline "$@"
    train configs/demo_qg "$@"
    echo
    echo "Trained on sharp portraits alone, for as many epochs, plainly and by QGFace (which sees two views of each image, and so"
    echo "computes twice as much). Unseen people: pairs of sharp images (hq), of a sharp and a blurred one (mixed), of blurred ones (lq)."
    "$VENV/bin/python" -m eval runs runs/demo_baseline runs/demo_qg
}

# The whole suite on two workers, one thread each; with arguments of your own, as pytest would.
run_tests() {
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    [ $# -gt 0 ] || set -- --numprocesses 2 --dist worksteal
    exec "$VENV/bin/python" -m pytest "$@"
}

command=${1:-demo}
[ $# -gt 0 ] && shift
case $command in
    demo) setup; demo "$@" ;;
    test) setup; run_tests "$@" ;;
    train) [ $# -gt 0 ] || fail "usage: $0 train CONFIG [key=value ...]"; setup; train "$@" ;;
    setup) setup ;;
    *) fail "unknown command '$command'; known: demo (default), test, train, setup" ;;
esac
