#!/usr/bin/env bash
# Fine-tune a model, on one process or many. The recipes call this, and so do you, with data of your own.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

nproc=0 config="" data="" tokenizer=""
options=(nproc config data tokenizer)
usage="usage: bash finetune.sh [--data DIR] [--config FILE] [--nproc N] [++key=value ...]

  --data DIR        the folder of your data: {train,dev}/{wav.scp,text}, or train_wav.scp train_text.txt val_wav.scp
                    val_text.txt as for Fun-ASR. Its JSONL is made where it is absent or older.
  --tokenizer NAME  counts text_length in that JSONL (default: Qwen/Qwen3-0.6B, from the hub; or a folder)
  --config FILE     YAML of the run; python tools/train.py --help lists the keys
  --nproc N         training processes on this machine (default: one per GPU, one without GPU)
  ++key=value       any key of the YAML, for example ++model=FunAudioLLM/Fun-ASR-Nano-2512-hf
                    ++train_data_set_list=data/train.jsonl ++output_dir=exp/mine ++train_conf.max_epoch=5

Several machines: start it on each, with WORLD_SIZE (number of machines), RANK (of this one, from 0),
MASTER_ADDR and MASTER_PORT (of the first) in the environment. The same command after a kill goes on
where the run stopped."
. "$here/local/parse_options.sh"
parse_options "$@"
. "$here/local/env.sh"
. "$here/local/data.sh"

# make_jsonl KEY PREFIX...: that key of the YAML becomes the JSONL of the set, made anew if it is older than the set.
make_jsonl() {
  find_set "${@:2}"
  if [[ ! $jsonl -nt $scp || ! $jsonl -nt $text ]]; then
    "$PYTHON" "$root/tools/scp2jsonl.py" ++scp_file="$scp" ++transcript_file="$text" ++jsonl_file="$jsonl" \
      "${segments[@]}" ${tokenizer:+++tokenizer="$tokenizer"}
  fi
  sets+=("++$1=$jsonl")
}

sets=()
if [[ $data ]]; then
  make_jsonl train_data_set_list "$data/train"
  make_jsonl valid_data_set_list "$data/dev" "$data/val"
fi

if ((nproc == 0)); then
  gpus=${CUDA_VISIBLE_DEVICES-$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null || true)}
  read -ra gpus <<<"${gpus//[,$'\n']/ }"
  nproc=$((${#gpus[@]} ? ${#gpus[@]} : 1))
fi
launch=("$PYTHON")
if ((${WORLD_SIZE:-1} > 1)); then
  launch+=(-m torch.distributed.run --nproc-per-node "$nproc" --nnodes "$WORLD_SIZE"
    --master-port "${MASTER_PORT:-29500}"
    --node-rank "${RANK:?with WORLD_SIZE, set RANK: the number of this machine, 0 for the first}"
    --master-addr "${MASTER_ADDR:?with WORLD_SIZE, set MASTER_ADDR: the address of the first machine}")
elif ((nproc > 1)); then
  launch+=(-m torch.distributed.run --nproc-per-node "$nproc" --standalone)
fi
exec "${launch[@]}" "$root/tools/train.py" ${config:+--config "$config"} "${sets[@]}" "${overrides[@]}"
