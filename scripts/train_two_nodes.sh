#!/usr/bin/env bash
# One training run over several machines, without a job scheduler. On each machine, with the same RDZV:
#
#   scripts/train_two_nodes.sh NODE_RANK CONFIG [key=value ...]
#
#   machine A:  RDZV=a.cluster:29400 scripts/train_two_nodes.sh 0 configs/vgg2_r34_qg rec=/data/vgg2
#   machine B:  RDZV=a.cluster:29400 scripts/train_two_nodes.sh 1 configs/vgg2_r34_qg rec=/data/vgg2
#
# RDZV=HOST:PORT   where the machines meet: a free port of machine 0, reachable from all
# NNODES=2         machines;  NPROC=gpu  processes on each: a number, or gpu for one on each GPU
# RDZV_ID=qgface   name of the run, if several meet at one place;  MAX_RESTARTS=3  restarts after a lost process
#
# output= must be a folder that all machines share; rec= may be a local copy, the same on all.
# Two machines on one host, to try it out: NPROC=2 and two terminals.
set -euo pipefail

if [ $# -lt 2 ] || [ -z "${RDZV:-}" ]; then
    sed -n '2,16s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
node=$1
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.."

exec "${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}" -m torch.distributed.run \
    --nnodes="${NNODES:-2}" --node_rank="$node" --nproc_per_node="${NPROC:-gpu}" --max_restarts="${MAX_RESTARTS:-3}" \
    --rdzv_backend=c10d --rdzv_endpoint="$RDZV" --rdzv_id="${RDZV_ID:-qgface}" \
    --rdzv_conf=is_host="$([ "$node" = 0 ] && echo 1 || echo 0)" \
    train.py "$@"
