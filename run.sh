#!/usr/bin/env bash
# Sets up a Python environment on a fresh machine (once), then runs:
#
#   ./run.sh                            the demo: draw faces, train plainly and with QGFace, compare both (table, picture)
#   ./run.sh test [pytest options]      the tests
#   ./run.sh train CONFIG [key=value]   training on all GPUs of this machine, or on up to two CPU cores
#   ./run.sh python [arguments]         the environment's Python, such as ./run.sh python -m eval verify ...
#   ./run.sh gpu                        acceptance on a machine with GPUs: tests, trainings and speed, as one page
#   ./run.sh docs                       the documentation as a site, in site/
#   ./run.sh setup                      set-up only
#   ./run.sh help                       this text
#
# Needs Linux and Python 3.11 or later. PYTHON=... selects the interpreter for the set-up, VENV=... the environment's folder
# (default .venv), NPROC=... the number of training processes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

VENV=${VENV:-.venv}

fail() { echo "error: $*" >&2; exit 2; }

print_help() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' run.sh; }

[ "$(uname -s)" = Linux ] || fail "this software runs on Linux only; this system is $(uname -s)"

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

# install REQUIREMENTS STAMP: installs a requirements file, unless STAMP shows that this version of it is installed.
install() {
    local wanted
    wanted=$(cksum <"$1")
    if [ -f "$2" ] && [ "$(cat "$2")" = "$wanted" ]; then
        return
    fi
    echo "installing $1 in $VENV (once)" >&2
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$1"
    echo "$wanted" >"$2"
}

setup() {
    local python
    if [ ! -x "$VENV/bin/python" ]; then
        python=$(find_python)
        "$python" -m venv "$VENV"
    fi
    install requirements.txt "$VENV/.requirements"
}

# With replace=exec, the launcher takes this script's place, so that signals reach it.
train() {
    ${replace:-} "$VENV/bin/python" -m scripts.launch --standalone ${NPROC:+"--nproc_per_node=$NPROC"} train.py "$@"
}

demo() {
    "$VENV/bin/python" -m recognition.data.demo_faces --out data/demo --low-quality-share 0
    train configs/demo_baseline "$@"
    train configs/demo_qg "$@"
    echo
    echo "Both were trained on sharp portraits for the same number of epochs: plain AdaFace, and QGFace, which sees two views of each"
    echo "image and so computes twice as much. Verification of unseen people: both images sharp (hq), one blurred (mixed), both (lq)."
    "$VENV/bin/python" -m eval runs runs/demo_baseline runs/demo_qg
    echo
    echo "The same encoders as sharp portraits get smaller and more blurred (100 pairs, so differences of a few percent are chance):"
    "$VENV/bin/python" -m eval robustness runs/demo_baseline runs/demo_qg --bins data/demo/demo_hq.bin \
        --axes resolution blur --pairs 100 --far 0.1 --plots runs/demo_qg/eval
}

# All tests, on two workers with one thread each; with arguments, what pytest makes of them.
run_tests() {
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    [ $# -gt 0 ] || set -- --numprocesses 2 --dist worksteal
    exec "$VENV/bin/python" -m pytest "$@"
}

docs() {
    install requirements/docs.txt "$VENV/.requirements-docs"
    NO_MKDOCS_2_WARNING=1 exec "$VENV/bin/python" -m mkdocs build --strict "$@"
}

command=${1:-demo}
[ $# -gt 0 ] && shift
case $command in
    demo) setup; demo "$@" ;;
    test) setup; run_tests "$@" ;;
    train) [ $# -gt 0 ] || fail "usage: $0 train CONFIG [key=value ...]"; setup; replace=exec train "$@" ;;
    python) setup; exec "$VENV/bin/python" "$@" ;;
    gpu) setup; exec "$VENV/bin/python" -m benchmarks.gpu "$@" ;;
    docs) setup; docs "$@" ;;
    setup) setup ;;
    help | -h | --help) print_help ;;
    *) fail "unknown command '$command'; known: demo (default), test, train, python, gpu, docs, setup, help" ;;
esac
