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
  3  align the test set
  4  score: mean boundary error, report with pictures, and a row in RESULTS.md

Options:
$common_options"
start_recipe "$@"

if stage 0 "make the corpus in $data, and a random model in $tiny"; then
  "$PYTHON" ../asr/local/prepare_mini.py ++output_dir="$data" ++size="$size" ++nproc="$(nproc)"
  for set in train dev test; do
    "$PYTHON" "$root/tools/validate_data.py" "$data/$set"
  done
  "$PYTHON" "$root/tools/make_tiny_model.py" --config conf/tiny_model.yaml ++output_dir="$tiny" \
    ++text_files="[$data/train/text]"
fi

if stage 1 "JSONL of every set"; then
  for set in train dev test; do
    times_jsonl "$data/$set" text English
  done
fi

if stage 2 "check, then train $exp"; then
  train_aligner --config "$config" ++model="$tiny" ++output_dir="$exp" ++train_data_set_list="$data/train.jsonl" \
    ++valid_data_set_list="$data/dev.jsonl" "${overrides[@]}"
fi

if stage 3 "align test"; then
  align_set "$exp" test
fi

if stage 4 "score test"; then
  bash "$root/local/score_alignment.sh" "$data/test.jsonl" "$exp/decode_test" "$results"
fi
