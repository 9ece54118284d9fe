#!/usr/bin/env bash
# TinyFace, ranks 1, 5 and 20.
#
#     scripts/eval_tinyface.sh RUN /data/tinyface [arguments]
#
# NPROC=4 embeds on four processes. Further arguments go to `python -m eval tinyface`.
set -euo pipefail
. "$(dirname "$0")/eval_common.sh"
need $# 2 "scripts/eval_tinyface.sh RUN /data/tinyface [arguments]"
run="$1" folder="$2"
shift 2
evaluate tinyface --checkpoint "$run" --data-root "$folder" "$@"
