#!/usr/bin/env bash
# Evaluates a run on one benchmark, or on all benchmarks of a folder. From any folder.
#
#   scripts/eval.sh BENCHMARK RUN DATA [options of `python -m eval`, such as --json out.json]
#
#   scripts/eval.sh verify   RUN lfw.bin [cfp_fp.bin ...]      verification, ten folds
#   scripts/eval.sh ijbb     RUN /data/IJB_release/IJBB        IJB-B, 1:1 and 1:N
#   scripts/eval.sh ijbc     RUN /data/IJB_release/IJBC        IJB-C
#   scripts/eval.sh tinyface RUN /data/tinyface                TinyFace, ranks 1, 5, 20
#   scripts/eval.sh scface   RUN /data/scface                  SCface, rank 1 at three distances
#   scripts/eval.sh rfw      RUN /data/rfw                     RFW, four groups and the gaps between them
#   scripts/eval.sh ijbs     RUN /data/IJBS                    IJB-S, five protocols
#   scripts/eval.sh all      RUN /data/val                     every benchmark in the folder, and a summary table
#
# NPROC=4 embeds with four processes (default 1; one per GPU).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh" 3 "$@"

benchmark=$1 run=$2 data=$3
shift 3
case $benchmark in
    verify) set -- verify --bins "$data" "$@" ;;
    ijbb | ijbc) set -- ijb --target "${benchmark^^}" --data-root "$data" "$@" ;;
    tinyface | scface | rfw | ijbs | all) set -- "$benchmark" --data-root "$data" "$@" ;;
    *) echo "error: unknown benchmark '$benchmark'; known: verify, ijbb, ijbc, tinyface, scface, rfw, ijbs, all" >&2; exit 2 ;;
esac
command=$1
shift
launch=("$python")
if [ "${NPROC:-1}" -gt 1 ]; then
    launch+=(-m scripts.launch --standalone --nproc_per_node="$NPROC")
fi
exec "${launch[@]}" -m eval "$command" --checkpoint "$run" "$@"
