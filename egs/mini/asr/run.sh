#!/usr/bin/env bash
# The whole way from a corpus to a word error rate, on speech that espeak-ng makes: minutes on 2 CPU cores.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../../../local/stages.sh"

usage="usage: bash run.sh [options] [++key=value ...]

Stages, each of which can be run alone and again:
  0  make the corpus in data/<size>/, as Kaldi files; a random model of the real architecture in exp/tiny_<size>/
  1  JSONL of every set
  2  fine-tune into exp/<run>/; the same command after a kill goes on where the run stopped
  3  decode the test sets
  4  normalise, compute-wer, report, and a row in RESULTS.md (quick: in exp/<run>/RESULTS.md)

Options:
$common_options"
start_recipe "$@"

tests=(test test_zh test_mix)

if stage 0 "make the corpus in $data, and a random model in $tiny"; then
  "$PYTHON" local/prepare_mini.py ++output_dir="$data" ++size="$size" ++nproc="$(nproc)"
  for set in train train_zh dev "${tests[@]}"; do
    "$PYTHON" "$root/tools/validate_data.py" "$data/$set"
  done
  "$PYTHON" "$root/tools/make_tiny_model.py" --config conf/tiny_model.yaml ++output_dir="$tiny" \
    ++text_files="[$data/train/text,$data/train_zh/text]"
fi

if stage 1 "JSONL of every set"; then
  for set in train train_zh dev "${tests[@]}"; do
    "$PYTHON" "$root/tools/scp2jsonl.py" ++scp_file="$data/$set/wav.scp" ++transcript_file="$data/$set/text" \
      ++jsonl_file="$data/$set.jsonl" ++tokenizer="$tiny"
  done
fi

if stage 2 "fine-tune $tiny into $exp"; then
  bash "$root/finetune.sh" --nproc "$nproc" --config "$config" ++model="$tiny" ++output_dir="$exp" \
    ++train_data_set_list="$data/train.jsonl" ++valid_data_set_list="$data/dev.jsonl" "${overrides[@]}"
fi

if stage 3 "decode ${tests[*]}"; then
  for set in "${tests[@]}"; do
    bash "$root/decode.sh" --model-dir "$exp" --data "$data/$set" --score false
  done
fi

if stage 4 "score ${tests[*]}"; then
  for set in "${tests[@]}"; do
    bash "$root/local/score.sh" "$data/$set/text" "$exp/decode_$set" "$results"
  done
fi
