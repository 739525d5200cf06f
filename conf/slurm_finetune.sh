#!/usr/bin/env bash
# Fine-tune on the nodes of a SLURM cluster. Submit from the project's folder, with the options of finetune.sh; what
# stands before this file's name overrides the lines below, and your cluster may want --partition and --account there:
#
#   sbatch --nodes=4 --gpus-per-node=8 conf/slurm_finetune.sh --data mydata ++output_dir=exp/mine
#
# Preempted, or five minutes before its time is up, the run saves and the job is queued again; it goes on where it
# stopped. scancel ends it for good.
#SBATCH --job-name=finetune
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=48
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=finetune-%j.log
set -euo pipefail

# A copy of this script runs, in SLURM's own folder: it cannot know where the project is.
if [[ ! -e finetune.sh ]]; then
  echo "error: no finetune.sh in $PWD; submit the job from the project's folder" >&2
  exit 2
fi

# On every node. SIGTERM reaches each process of a task; this shell tells a run that was stopped from one that failed,
# since torchrun's status is 1 in both cases. srun's status is the highest of all nodes: a failure prevails.
export stopped=143 failed=255
# shellcheck disable=SC2329 # srun's shells call it
node() {
  local status=0 told=""
  trap 'told=yes' TERM
  RANK=$SLURM_NODEID bash finetune.sh "$@" || status=$?
  [[ ! $told ]] || return "$stopped"
  ((status == 0)) || echo "error: node $SLURM_NODEID failed with status $status" >&2
  return $((status ? failed : 0))
}
export -f node

hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER_ADDR=${hosts%%$'\n'*}
MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000)) # so that two jobs on one node do not meet
WORLD_SIZE=$SLURM_JOB_NUM_NODES
export MASTER_ADDR MASTER_PORT WORLD_SIZE

trap : TERM # to see how the nodes end
status=0
srun --ntasks="$WORLD_SIZE" --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
  bash -c 'node "$@"' finetune "$@" || status=$?
# A job that was cancelled is not running any more.
if ((status == stopped)) && [[ $(squeue --noheader --job "$SLURM_JOB_ID" --format %T) == RUNNING ]]; then
  echo "stopped by a signal; queued again"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
