#!/usr/bin/env bash
# Real speech: strings of 1 to 5 English digits, joined from recordings of the Free Spoken Digit Dataset.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../../../local/stages.sh"

corpus=""
options+=(corpus)
usage="usage: bash run.sh [--corpus DIR] [options] [++key=value ...]

Stages, each of which can be run alone and again:
  0  make the strings in data/<size>/, as Kaldi files; a random model of the real architecture in exp/tiny_<size>/
  1  JSONL of every set
  2  fine-tune into exp/<run>/; the same command after a kill goes on where the run stopped
  3  decode the test set
  4  normalise, compute-wer, report, and a row in RESULTS.md (quick: in exp/<run>/RESULTS.md)

Options:
  --corpus DIR      your copy of the corpus (default: it is downloaded into downloads/)
$common_options"
start_recipe "$@"

if stage 0 "make strings of digits in $data, and a random model in $tiny"; then
  "$PYTHON" local/prepare_fsdd.py ++output_dir="$data" ++size="$size" ${corpus:+++corpus="$corpus"}
  for set in train dev test; do
    "$PYTHON" "$root/tools/validate_data.py" "$data/$set"
  done
  "$PYTHON" "$root/tools/make_tiny_model.py" --config conf/tiny_model.yaml ++output_dir="$tiny" \
    ++text_files="[$data/train/text]"
fi

if stage 1 "JSONL of every set"; then
  for set in train dev test; do
    "$PYTHON" "$root/tools/scp2jsonl.py" ++scp_file="$data/$set/wav.scp" ++transcript_file="$data/$set/text" \
      ++jsonl_file="$data/$set.jsonl" ++tokenizer="$tiny"
  done
fi

if stage 2 "fine-tune $tiny into $exp"; then
  bash "$root/finetune.sh" --nproc "$nproc" --config "$config" ++model="$tiny" ++output_dir="$exp" \
    ++train_data_set_list="$data/train.jsonl" ++valid_data_set_list="$data/dev.jsonl" "${overrides[@]}"
fi

if stage 3 "decode test"; then
  bash "$root/decode.sh" --model-dir "$exp" --data "$data/test" --score false
fi

if stage 4 "score test"; then
  bash "$root/local/score.sh" "$data/test/text" "$exp/decode_test" "$results" basic # mixed would make one number of a string of digits
fi
