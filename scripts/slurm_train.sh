#!/usr/bin/env bash
# Trains one run as a Slurm job: one launcher per machine, one process per GPU.
#
#   sbatch --nodes=8 scripts/slurm_train.sh configs/vgg2_r34_qg rec=/data/vgg2 output=/shared/runs/a
#
# All machines must share this folder and output=. Five minutes before the job's time limit, Slurm sends SIGTERM: the run saves a
# checkpoint and ends. Submitted again with the same arguments, it continues from there; --requeue submits it again by itself.
# CONTAINER=qgface.sif uses the environment in that Apptainer image instead of .venv; APPTAINER_BIND names folders that it needs.
#
#SBATCH --job-name=qgface
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

if [ $# -lt 1 ] || [ -z "${SLURM_JOB_ID:-}" ]; then
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}"

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p) # reads all lines: head would end scontrol by SIGPIPE
export RDZV="$first:$((20000 + SLURM_JOB_ID % 20000))" RDZV_ID="$SLURM_JOB_ID"
export NNODES="$SLURM_NNODES" NPROC="${SLURM_GPUS_ON_NODE:-gpu}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

exec srun --kill-on-bad-exit=1 ${CONTAINER:+apptainer exec --nv "$CONTAINER"} bash -c 'exec scripts/train_two_nodes.sh "$SLURM_NODEID" "$@"' launcher "$@"
