#!/usr/bin/env bash
# Ten-fold verification on .bin sets.
#
#     scripts/eval_verify.sh RUN lfw.bin [cfp_fp.bin ...] [arguments]
#
# NPROC=4 embeds on four processes. Further arguments go to `python -m eval verify`.
set -euo pipefail
. "$(dirname "$0")/eval_common.sh"
need $# 2 "scripts/eval_verify.sh RUN lfw.bin [cfp_fp.bin ...] [arguments]"
run="$1"
shift
evaluate verify --checkpoint "$run" --bins "$@"
