#!/usr/bin/env bash
# SCface, rank 1 at three distances, and figure 6.
#
#     scripts/eval_scface.sh RUN /data/scface [arguments]
#
# NPROC=4 embeds on four processes. Further arguments go to `python -m eval scface`.
set -euo pipefail
. "$(dirname "$0")/eval_common.sh"
need $# 2 "scripts/eval_scface.sh RUN /data/scface [arguments]"
run="$1" folder="$2"
shift 2
evaluate scface --checkpoint "$run" --data-root "$folder" "$@"
