#!/usr/bin/env bash
# From a corpus to a phoneme error rate, on speech that espeak-ng makes with its own phonemes: minutes on 2 CPU cores.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../../../local/stages.sh"
. "$(dirname "${BASH_SOURCE[0]}")/../../../local/phonemes.sh"

usage="usage: bash run.sh [options] [++key=value ...]

Stages, each of which can be run alone and again:
  0  make the corpus in data/<size>/, as Kaldi files; a random model of the real architecture in exp/tiny_<size>/
  1  JSONL of every set, the phonemes as tokens, and the model with them in exp/start_<size>/
  2  check the run, then fine-tune into exp/<run>/; after a kill the same command goes on where the run stopped
  3  decode the test sets, held to the phonemes
  4  score: phoneme error rate of the LLM's answers and of the CTC head's, report, and a row in RESULTS.md

Options:
$common_options"
start_recipe "$@"

train=(train train_zh)
tests=(test test_zh)
mandarin=900 # utterances to train on; egs/mini/asr has fewer, and does not train on them
[[ $size == full ]] || mandarin=30
# On a CPU, two processes make more of two cores than one.
if ((nproc == 0)) && [[ ! ${CUDA_VISIBLE_DEVICES-$(nvidia-smi -L 2>/dev/null)} ]]; then
  nproc=2
fi
start=exp/start_$size model=$tiny encoder="" llm=""

if stage 0 "make the corpus in $data, and a random model in $tiny"; then
  "$PYTHON" ../asr/local/prepare_mini.py ++output_dir="$data" ++size="$size" ++train_zh="$mandarin" \
    ++nproc="$(nproc)"
  for set in "${train[@]}" dev "${tests[@]}"; do
    "$PYTHON" "$root/tools/validate_data.py" "$data/$set"
  done
  "$PYTHON" "$root/tools/make_tiny_model.py" --config conf/tiny_model.yaml ++output_dir="$tiny" \
    ++text_files="[$data/train/text]"
fi

if stage 1 "JSONL of every set, phonemes as tokens, and $start"; then
  phoneme_model "$data/train/text-phone,$data/train_zh/text-phone"
  for set in "${train[@]}" dev "${tests[@]}"; do
    phoneme_jsonl "$data/$set"
  done
  printf '%s.jsonl\n' "${train[@]}" >"$data/train.list"
fi

if stage 2 "check, then fine-tune $start into $exp"; then
  train_phonemes --config "$config" ++model="$start" ++output_dir="$exp" ++train_data_set_list="$data/train.list" \
    ++valid_data_set_list="$data/dev.jsonl" "${overrides[@]}"
fi

if stage 3 "decode ${tests[*]}"; then
  for set in "${tests[@]}"; do
    decode_phonemes "$exp" "$set"
  done
fi

if stage 4 "score ${tests[*]}"; then
  for set in "${tests[@]}"; do
    bash "$root/local/score_phonemes.sh" "$data/$set/text-phone" "$exp/decode_$set" "$results"
  done
fi
