#!/usr/bin/env bash
# Phonemes of TIMIT, scored in 39 classes: from the LDC's folder, or from a sample of it, to a phoneme error rate.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../../../local/stages.sh"
. "$(dirname "${BASH_SOURCE[0]}")/../../../local/phonemes.sh"

corpus="" model="" encoder="" llm=""
options+=(corpus model encoder llm)
usage="usage: bash run.sh --corpus DIR [options] [++key=value ...]

Stages, each of which can be run alone and again:
  0  Kaldi files of train, dev and test in data/<size>/
  1  JSONL of every set, the 61 phones as tokens, and the model with them in exp/start_<size>/
  2  check the run, then fine-tune into exp/<run>/; after a kill the same command goes on where the run stopped
  3  decode test with the model before and after training
  4  score both in 39 classes: report, and rows in RESULTS.md

Options:
  --corpus DIR      TIMIT: the LDC's folder with TRAIN and TEST, or one folder per speaker (dr1-fvmh0, ...)
  --model DIR       the model to start from (default: that of egs/mini/phoneme, which is tiny and has heard no person)
  --encoder NAME, --llm NAME
                    in its place a Whisper and a Qwen3, for example openai/whisper-large-v3 and Qwen/Qwen3-4B, with
                    --config conf/phoneme_lora.yaml
$common_options"
start_recipe "$@"

start=exp/start_$size model=${model:-../../mini/phoneme/exp/$size}

if stage 0 "Kaldi files of $corpus in $data"; then
  [[ $corpus ]] || refuse "--corpus DIR is needed"
  "$PYTHON" local/prepare_timit.py ++corpus="$corpus" ++output_dir="$data"
  for set in train dev test; do
    "$PYTHON" "$root/tools/validate_data.py" "$data/$set"
  done
fi

if stage 1 "JSONL of every set, phones as tokens, and $start"; then
  phoneme_model "$data/train/text-phone,$data/dev/text-phone,$data/test/text-phone"
  for set in train dev test; do
    phoneme_jsonl "$data/$set"
  done
fi

if stage 2 "check, then fine-tune $start into $exp"; then
  train_phonemes --config "$config" ++model="$start" ++output_dir="$exp" ++train_data_set_list="$data/train.jsonl" \
    ++valid_data_set_list="$data/dev.jsonl" "${overrides[@]}"
fi

if stage 3 "decode test before and after"; then
  decode_phonemes "$start" test
  decode_phonemes "$exp" test
fi

if stage 4 "score test"; then
  bash "$root/local/score_phonemes.sh" "$data/test/text-phone" "$start/decode_test" "$results" ++fold=timit39 \
    ++name="before $(run_name)"
  bash "$root/local/score_phonemes.sh" "$data/test/text-phone" "$exp/decode_test" "$results" ++fold=timit39 \
    ++name="$(run_name)"
fi
