#!/usr/bin/env bash
# From a corpus to boundary errors in milliseconds, on speech whose times espeak-ng tells: minutes on 2 CPU cores.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../../../local/stages.sh"
. "$(dirname "${BASH_SOURCE[0]}")/../../../local/align.sh"

usage="usage: bash run.sh [options] [++key=value ...]

Stages, each of which can be run alone and again:
  0  make the corpus in data/<size>/, as Kaldi files; a random model of the real architecture in exp/tiny_<size>/
  1  JSONL of every set, with the times of its words
  2  check the run, then train into exp/<run>/; after a kill the same command goes on where the run stopped
  3  align the test sets
  4  score: mean boundary error, report with pictures, and a row in RESULTS.md

Options:
$common_options"
start_recipe "$@"

train=(train train_zh)
tests=(test test_zh)
mandarin=600 # utterances to train on
[[ $size == full ]] || mandarin=30
# On a CPU, two processes make more of two cores than one.
if ((nproc == 0)) && [[ ! ${CUDA_VISIBLE_DEVICES-$(nvidia-smi -L 2>/dev/null)} ]]; then
  nproc=2
fi

if stage 0 "make the corpus in $data, and a random model in $tiny"; then
  "$PYTHON" ../asr/local/prepare_mini.py ++output_dir="$data" ++size="$size" ++train_zh="$mandarin" \
    ++nproc="$(nproc)"
  for set in "${train[@]}" dev "${tests[@]}"; do
    "$PYTHON" "$root/tools/validate_data.py" "$data/$set"
  done
  "$PYTHON" "$root/tools/make_tiny_model.py" --config conf/tiny_model.yaml ++output_dir="$tiny" \
    ++text_files="[$data/train/text,$data/train_zh/text]"
fi

if stage 1 "JSONL of every set"; then
  for set in "${train[@]}" dev "${tests[@]}"; do
    language=English
    [[ $set != *_zh ]] || language=Chinese
    times_jsonl "$data/$set" text "$language"
  done
  printf '%s.jsonl\n' "${train[@]}" >"$data/train.list"
fi

if stage 2 "check, then train $exp"; then
  train_aligner --config "$config" ++model="$tiny" ++output_dir="$exp" ++train_data_set_list="$data/train.list" \
    ++valid_data_set_list="$data/dev.jsonl" "${overrides[@]}"
fi

if stage 3 "align ${tests[*]}"; then
  for set in "${tests[@]}"; do
    align_set "$exp" "$set"
  done
fi

if stage 4 "score ${tests[*]}"; then
  for set in "${tests[@]}"; do
    bash "$root/local/score_alignment.sh" "$data/$set.jsonl" "$exp/decode_$set" "$results"
  done
fi
