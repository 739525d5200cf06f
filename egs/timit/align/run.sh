#!/usr/bin/env bash
# Words and phones of TIMIT, whose times were corrected by hand: mean boundary error before and after fine-tuning.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../../../local/stages.sh"
. "$(dirname "${BASH_SOURCE[0]}")/../../../local/align.sh"

corpus="" model=""
options+=(corpus model)
usage="usage: bash run.sh --corpus DIR [options] [++key=value ...]

Stages, each of which can be run alone and again:
  0  Kaldi files of train, dev and test in data/<size>/, with the times of words; the same sets with phones as words
  1  JSONL of every set
  2  check the run, then fine-tune into exp/<run>/; after a kill the same command goes on where the run stopped
  3  align test and test_phone with the model before and after training
  4  score both: difference and its significance, report with pictures, and rows in RESULTS.md

Options:
  --corpus DIR      TIMIT: the LDC's folder with TRAIN and TEST, or one folder per speaker (dr1-fvmh0, ...)
  --model NAME      the model to start from, a hub name or a folder, for example Qwen/Qwen3-ForcedAligner-0.6B with
                    --config conf/align_lora.yaml of the project (default: that of egs/mini/align, which is tiny and has
                    heard no person)
$common_options"
start_recipe "$@"

tests=(test test_phone)
tiny_model=../../mini/align/exp/$size
model=${model:-$tiny_model}
before=$exp/before
name=${exp#exp/}
[[ $model != "$tiny_model" ]] || name+=" (tiny model)"

if stage 0 "Kaldi files of $corpus in $data"; then
  [[ $corpus ]] || refuse "--corpus DIR is needed"
  "$PYTHON" ../phoneme/local/prepare_timit.py ++corpus="$corpus" ++output_dir="$data" ++words=true
  for set in train dev test; do
    "$PYTHON" "$root/tools/validate_data.py" "$data/$set"
  done
fi

if stage 1 "JSONL of every set"; then
  for set in train train_phone dev "${tests[@]}"; do
    times_jsonl "$data/$set" text-words English ++overlap=0.15 # a word may go over into the next
  done
  printf '%s.jsonl\n' train train_phone >"$data/train.list"
fi

if stage 2 "check, then fine-tune $model into $exp"; then
  train_aligner --config "$config" ++model="$model" ++output_dir="$exp" ++train_data_set_list="$data/train.list" \
    ++valid_data_set_list="$data/dev.jsonl" "${overrides[@]}"
fi

if stage 3 "align ${tests[*]} before and after"; then
  for set in "${tests[@]}"; do
    align_set "$model" "$set" "$before"
    align_set "$exp" "$set"
  done
fi

if stage 4 "score ${tests[*]}"; then
  for set in "${tests[@]}"; do
    bash "$root/local/score_alignment.sh" "$data/$set.jsonl" "$before/decode_$set" "$results" ++name="before $name"
    bash "$root/local/score_alignment.sh" "$data/$set.jsonl" "$exp/decode_$set" "$results" ++name="$name" \
      ++baseline="$before/decode_$set"
  done
fi
