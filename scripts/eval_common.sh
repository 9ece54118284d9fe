# Sourced by eval_*.sh: runs `python -m eval` from any folder, on NPROC processes (default 1; one a GPU).

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-$root/.venv/bin/python}"
[ -x "$python" ] || python=python3
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

# need HAVE WANT USAGE: exits with a line on how to call the script where arguments are missing.
need() {
    if [ "$1" -lt "$2" ]; then
        echo "usage: $3" >&2
        exit 2
    fi
}

evaluate() {
    if [ "${NPROC:-1}" -gt 1 ]; then
        exec "$python" -m torch.distributed.run --standalone --nproc_per_node="$NPROC" -m eval "$@"
    fi
    exec "$python" -m eval "$@"
}
