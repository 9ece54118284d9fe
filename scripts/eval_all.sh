#!/usr/bin/env bash
# Every benchmark found in a folder, and one summary table.
#
#     scripts/eval_all.sh RUN /data/val [arguments]
#
# NPROC=4 embeds on four processes. Further arguments go to `python -m eval all`.
set -euo pipefail
. "$(dirname "$0")/eval_common.sh"
need $# 2 "scripts/eval_all.sh RUN /data/val [arguments]"
run="$1" folder="$2"
shift 2
evaluate all --checkpoint "$run" --data-root "$folder" "$@"
