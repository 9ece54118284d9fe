#!/usr/bin/env bash
# Trains and evaluates every row of a table (I, II, III of the paper; controls) and prints it next to the paper's figures.
#
#   scripts/ablation.sh I                              # the real faces in ../shared/faces, one process, seeds 1 2 3
#   scripts/ablation.sh I --form vgg2_r34 --nproc 4 --seeds 2048 --data-root /data/val rec=/data/faces_vgg_112x112
#
# The arguments are those of `python -m scripts.ablation`. Finished runs are not repeated.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh" 1 "$@"
cd "$root"
exec "$python" -m scripts.ablation "$@"
