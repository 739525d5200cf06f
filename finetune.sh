#!/usr/bin/env bash
# Fine-tune a model, on one process or many. The recipes call this, and so do you, with data of your own.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

nproc=0 config="" data="" tokenizer=""
options=(nproc config data tokenizer)
usage="usage: bash finetune.sh [--data DIR] [--config FILE] [--nproc N] [++key=value ...]

Without options it does what Fun-ASR's finetune.sh does, as conf/finetune.yaml says: the LLM of Fun-ASR-Nano is trained
on data/train_example.jsonl, checked on data/val_example.jsonl, and written to ./outputs, its log to train.log there.

  --data DIR        the folder of your data: {train,dev}/{wav.scp,text}, or train_wav.scp train_text.txt val_wav.scp
                    val_text.txt as for Fun-ASR. Its JSONL is made where it is absent or older. A file hotwords beside
                    wav.scp (train_hotwords.txt beside train_wav.scp) puts its words into the prompts.
  --tokenizer NAME  counts text_length in that JSONL (default: Qwen/Qwen3-0.6B, from the hub; or a folder)
  --config FILE     YAML of the run (default: conf/finetune.yaml); python tools/train.py --help lists the keys
  --nproc N         training processes on this machine (default: one per GPU, one without GPU)
  ++key=value       any key of the YAML, for example ++train_data_set_list=data/train.jsonl ++output_dir=exp/mine
                    ++llm_conf.use_lora=true; ++freeze_policy=auto chooses what is trained by the hours of data.
                    Options of Fun-ASR's trainer are honoured, which the log tells, or refused with what to use.

In the environment:
  CUDA_VISIBLE_DEVICES         the GPUs to use (default: all); empty: the CPU
  WORLD_SIZE, RANK             number of machines, and of this one, from 0: start the same command on each
  MASTER_ADDR, MASTER_PORT     address of the first machine, and a free port there (default: 26669)
On a SLURM cluster: sbatch conf/slurm_finetune.sh, with the same options.

SIGTERM saves, then ends the run. The same command goes on where a run stopped, for whatever reason."
. "$here/local/parse_options.sh"
parse_options "$@"
. "$here/local/env.sh"
. "$here/local/data.sh"

# stale FILE...: whether $jsonl is not there, or older than one of these.
stale() {
  local file
  for file; do
    [[ $jsonl -nt $file ]] || return 0
  done
  return 1
}

# make_jsonl KEY PREFIX...: that key of the YAML becomes the JSONL of the set, made anew where it is stale; by one
# process at a time, since several machines may share the folder.
make_jsonl() {
  find_set "${@:2}"
  sets+=("++$1=$jsonl")
  local inputs=("$scp" "$text" "${segments[@]#*=}" "${hotwords[@]#*=}")
  stale "${inputs[@]}" || return 0
  (
    exec 9>"$jsonl.lock"
    if command -v flock >/dev/null && ! flock -n 9; then # macOS has no flock
      echo "waiting for another process, here or on another machine, to make $jsonl"
      flock 9
    fi
    ! stale "${inputs[@]}" ||
      "$PYTHON" "$root/tools/scp2jsonl.py" ++scp_file="$scp" ++transcript_file="$text" ++jsonl_file="$jsonl" \
        "${segments[@]}" "${hotwords[@]}" ${tokenizer:+++tokenizer="$tokenizer"}
  )
}

sets=()
if [[ $data ]]; then
  make_jsonl train_data_set_list "$data/train"
  make_jsonl valid_data_set_list "$data/dev" "$data/val"
fi

machines=${WORLD_SIZE:-1} rank=${RANK:-0}
[[ $machines =~ ^[1-9][0-9]*$ ]] || refuse "WORLD_SIZE is the number of machines, got '$machines'"
if [[ ! $rank =~ ^(0|[1-9][0-9]*)$ ]] || ((rank >= machines)); then
  refuse "RANK is the number of this machine, from 0 to $((machines - 1)) (WORLD_SIZE - 1), got '$rank'"
fi
if ((nproc == 0)); then
  gpus=${CUDA_VISIBLE_DEVICES-$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null || true)}
  read -ra gpus <<<"${gpus//[,$'\n']/ }"
  nproc=$((${#gpus[@]} ? ${#gpus[@]} : 1))
fi

launch=("$PYTHON")
if ((machines > 1)); then
  launch+=(-m torch.distributed.run --nproc-per-node "$nproc" --nnodes "$machines"
    --node-rank "${RANK:?with WORLD_SIZE, set RANK: the number of this machine, 0 for the first}"
    --master-addr "${MASTER_ADDR:?with WORLD_SIZE, set MASTER_ADDR: the address of the first machine}"
    --master-port "${MASTER_PORT:-26669}")
elif ((nproc > 1)) && [[ ${MASTER_PORT:-} ]]; then
  launch+=(-m torch.distributed.run --nproc-per-node "$nproc" --master-port "$MASTER_PORT")
elif ((nproc > 1)); then
  launch+=(-m torch.distributed.run --nproc-per-node "$nproc" --standalone) # takes a free port
fi
# How long torchrun waits after a SIGTERM, in seconds: a large model takes more than its 30 to save.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}
exec "${launch[@]}" "$root/tools/train.py" --config "${config:-$root/conf/finetune.yaml}" "${sets[@]}" "${overrides[@]}"
