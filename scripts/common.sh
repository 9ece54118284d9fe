# Sourced by the other scripts as `source common.sh COUNT "$@"`. Prints the script's help if asked to, or if there are fewer than
# COUNT arguments. Sets root, the project's folder, and python, the interpreter of the environment that run.sh made (.venv, or
# VENV=...), and makes the project's modules importable from any folder.

# The comment at the head of the running script.
print_help() { sed -n '2,${/^#/!q;s/^# \{0,1\}//p}' "$0"; }

case "${2:-}" in -h | --help) print_help; exit 0 ;; esac
[ $# -gt "$1" ] || { print_help >&2; exit 2; }

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${VENV:-.venv}"
case "$VENV" in /*) ;; *) VENV="$root/$VENV" ;; esac
python="$VENV/bin/python"
if [ ! -x "$python" ]; then
    echo "error: there is no $python: run $root/run.sh setup, or set VENV= to the folder of an environment" >&2
    exit 2
fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1 # the project's modules, not the current folder's
