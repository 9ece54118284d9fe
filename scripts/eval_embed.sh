#!/usr/bin/env bash
# Features of aligned 112x112 images, as an .npz.
#
#     scripts/eval_embed.sh RUN OUT.npz IMAGES... [arguments]
set -euo pipefail
. "$(dirname "$0")/eval_common.sh"
need $# 3 "scripts/eval_embed.sh RUN OUT.npz IMAGES... [arguments]"
run="$1" out="$2"
shift 2
evaluate embed --checkpoint "$run" --out "$out" "$@"
