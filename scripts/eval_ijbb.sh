#!/usr/bin/env bash
# The ROC table of IJB-B (and 1:N, where the release holds the galleries).
#
#     scripts/eval_ijbb.sh RUN /data/IJB_release/IJBB [arguments]
#
# NPROC=4 embeds on four processes. Further arguments go to `python -m eval ijb`.
set -euo pipefail
. "$(dirname "$0")/eval_common.sh"
need $# 2 "scripts/eval_ijbb.sh RUN /data/IJB_release/IJBB [arguments]"
run="$1" release="$2"
shift 2
evaluate ijb --target IJBB --checkpoint "$run" --data-root "$release" "$@"
