#!/usr/bin/env bash
# Trains one run on several machines, without a job scheduler. On each machine, with the same RDZV:
#
#   scripts/train_two_nodes.sh NODE_RANK CONFIG [key=value ...]
#
#   machine A:  RDZV=a.cluster:29400 scripts/train_two_nodes.sh 0 configs/vgg2_r34_qg rec=/data/vgg2
#   machine B:  RDZV=a.cluster:29400 scripts/train_two_nodes.sh 1 configs/vgg2_r34_qg rec=/data/vgg2
#
# RDZV=HOST:PORT    where the machines meet: a free port of machine 0 that all can reach
# NNODES=2          number of machines
# NPROC=gpu         processes per machine: a number, or gpu for one per GPU
# RDZV_ID=qgface    name of the run, if several runs meet at the same place
# MAX_RESTARTS=3    restarts after a lost process
#
# output= must be a folder that all machines share; rec= may be a local copy of the same data on each.
# To try it out on one machine: NPROC=2 and two terminals.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh" 2 "$@"
[ -n "${RDZV:-}" ] || { print_help >&2; exit 2; }

node=$1
shift
cd "$root"
exec "$python" -m scripts.launch \
    --nnodes="${NNODES:-2}" --node_rank="$node" --nproc_per_node="${NPROC:-gpu}" --max_restarts="${MAX_RESTARTS:-3}" \
    --rdzv_backend=c10d --rdzv_endpoint="$RDZV" --rdzv_id="${RDZV_ID:-qgface}" \
    --rdzv_conf=is_host="$([ "$node" = 0 ] && echo 1 || echo 0)" \
    train.py "$@"
