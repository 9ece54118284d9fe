#!/usr/bin/env bash
# Trains and evaluates every row of a table (I, II, III of the paper; controls) and prints it beside the paper's.
#
#     scripts/ablation.sh I                              # on ../shared/faces (README: other data), one process, seeds 1 2 3
#     scripts/ablation.sh I --form vgg2_r34 --nproc 4 --seeds 2048 --data-root /data/val rec=/data/faces_vgg_112x112
#
# Further arguments go to `python -m scripts.ablation`. What is finished is not repeated.
set -euo pipefail
. "$(dirname "$0")/eval_common.sh"
need $# 1 "scripts/ablation.sh TABLE [arguments]"
cd "$root"
exec "$python" -m scripts.ablation "$@"
