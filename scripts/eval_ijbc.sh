#!/usr/bin/env bash
# The ROC table of IJB-C (and 1:N, where the release holds the galleries).
#
#     scripts/eval_ijbc.sh RUN /data/IJB_release/IJBC [arguments]
#
# NPROC=4 embeds on four processes. Further arguments go to `python -m eval ijb`.
set -euo pipefail
. "$(dirname "$0")/eval_common.sh"
need $# 2 "scripts/eval_ijbc.sh RUN /data/IJB_release/IJBC [arguments]"
run="$1" release="$2"
shift 2
evaluate ijb --target IJBC --checkpoint "$run" --data-root "$release" "$@"
