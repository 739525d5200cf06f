#!/usr/bin/env bash
# A forced aligner for recordings of your own: prepare, label by the model, train, and compare after with before.
set -euo pipefail
train_config=../../../conf/align_lora.yaml
. "$(dirname "${BASH_SOURCE[0]}")/../../../local/stages.sh"
. "$(dirname "${BASH_SOURCE[0]}")/../../../local/align.sh"

train="" dev="" test="" model=Qwen/Qwen3-ForcedAligner-0.6B language=English min_confidence=0.5
options+=(train dev test model language min_confidence)
usage="usage: bash run.sh --train DIR --test DIR [options] [++key=value ...]

A DIR holds recordings (wav, flac, mp3, ogg), each with a text of the same name (.txt), or times (.TextGrid, .ctm, .wrd,
.srt), in folders as you like. --test wants times that people made or corrected, or there is nothing to measure by.

Stages, each of which can be run alone and again:
  0  JSONL of every set in data/<size>/
  1  where training texts have no times, those of the model, if it is sure enough of them
  2  check the run, then fine-tune into exp/<run>/; after a kill the same command goes on where the run stopped
  3  align test with the model before and after training
  4  score both: difference and its significance, report with pictures, and rows in RESULTS.md

Options:
  --train DIR, --test DIR
                    recordings to train on, and those to score on
  --dev DIR         recordings with times, to choose the checkpoint by (default: 5 % of those to train on)
  --model NAME      the model to start from, a hub name or a folder (default: $model)
  --language NAME   of the texts (default: $language); Japanese and Korean need the extra align
  --min-confidence SHARE
                    utterances whose words the model is less sure of are not trained on (default: $min_confidence)
$common_options"
start_recipe "$@"
before=$exp/before

if stage 0 "JSONL of every set"; then
  [[ $train && $test ]] || refuse "--train DIR and --test DIR are needed"
  for set in train ${dev:+dev} test; do
    "$PYTHON" "$root/tools/prepare_aligner_data.py" ++audio_dir="${!set}" ++text_dir="${!set}" ++language="$language" \
      ++output_file="$data/$set.jsonl"
  done
  for set in ${dev:+dev} test; do
    ! grep -q '"timestamps": \[\]' "$data/$set.jsonl" ||
      refuse "--$set has texts without times, by which nothing can be measured; $data/$set.jsonl names them"
  done
fi

train_file=$data/train.jsonl
if grep -qs '"timestamps": \[\]' "$train_file"; then
  train_file=$data/train_labels.jsonl
fi

if stage 1 "times for $data/train.jsonl"; then
  if [[ $train_file == "$data/train.jsonl" ]]; then
    log "all texts have times"
  else
    "$PYTHON" "$root/tools/align.py" ++model_dir="$model" ++jsonl_file="$data/train.jsonl" ++output_file="$train_file" \
      ++min_confidence="$min_confidence"
  fi
fi

if stage 2 "check, then fine-tune $model into $exp"; then
  train_aligner --config "$config" ++model="$model" ++output_dir="$exp" ++train_data_set_list="$train_file" \
    ${dev:+++valid_data_set_list="$data/dev.jsonl"} "${overrides[@]}"
fi

if stage 3 "align test before and after"; then
  align_set "$model" test "$before"
  align_set "$exp" test
fi

if stage 4 "score test"; then
  bash "$root/local/score_alignment.sh" "$data/test.jsonl" "$before/decode_test" "$results" ++name="before ${exp#exp/}"
  bash "$root/local/score_alignment.sh" "$data/test.jsonl" "$exp/decode_test" "$results" \
    ++baseline="$before/decode_test"
fi
