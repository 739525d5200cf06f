#!/usr/bin/env bash
# Phonemes of English read by Mandarin speakers, and how well they were said: from the corpus to scores.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../../../local/stages.sh"
. "$(dirname "${BASH_SOURCE[0]}")/../../../local/phonemes.sh"

corpus="" model="" encoder="" llm="" multitask=false
options+=(corpus model encoder llm multitask)
usage="usage: bash run.sh --corpus DIR [options] [++key=value ...]

Stages, each of which can be run alone and again:
  0  Kaldi files of train, dev and test in data/<size>/
  1  JSONL of every set, the phones as tokens, and the model with them in exp/start_<size>/
  2  check the run, then fine-tune into exp/<run>/; after a kill the same command goes on where the run stopped
  3  decode test
  4  score: phoneme error rate, report, a row in RESULTS.md, and where there are experts' scores how well they are met

Options:
  --corpus DIR      speechocean762 with train/, test/ and resource/, or a part of it in one folder
  --model DIR       the model to start from (default: that of egs/mini/phoneme, which is tiny and has heard no person)
  --encoder NAME, --llm NAME
                    in its place a Whisper and a Qwen3, for example openai/whisper-large-v3 and Qwen/Qwen3-4B, with
                    --config conf/phoneme_lora.yaml
  --multitask true  learn the experts' scores of the sentence beside its phones; needs the corpus's scores.json
$common_options"
start_recipe "$@"
[[ $multitask == true || $multitask == false ]] || refuse "--multitask is true or false, got '$multitask'"

start=exp/start_$size model=${model:-../../mini/phoneme/exp/$size}

if stage 0 "Kaldi files of $corpus in $data"; then
  [[ $corpus ]] || refuse "--corpus DIR is needed"
  "$PYTHON" local/prepare_speechocean762.py ++corpus="$corpus" ++output_dir="$data"
  for set in train dev test; do
    "$PYTHON" "$root/tools/validate_data.py" "$data/$set"
  done
fi

if stage 1 "JSONL of every set, phones as tokens, and $start"; then
  table=text-phone
  [[ $multitask == false ]] || table=conversations.jsonl
  phoneme_model "$data/train/$table,$data/dev/$table,$data/test/$table"
  for set in train dev test; do
    if [[ $multitask == true ]]; then
      "$PYTHON" "$root/tools/scp2jsonl.py" ++conversations="$data/$set/$table" ++jsonl_file="$data/$set.jsonl" \
        ++tokenizer="$data/tokenizer"
    else
      phoneme_jsonl "$data/$set"
    fi
  done
fi

if stage 2 "check, then fine-tune $start into $exp"; then
  train_phonemes --config "$config" ++model="$start" ++output_dir="$exp" ++train_data_set_list="$data/train.jsonl" \
    ++valid_data_set_list="$data/dev.jsonl" "${overrides[@]}"
fi

if stage 3 "decode test"; then
  decode_phonemes "$exp" test
fi

if stage 4 "score test"; then
  bash "$root/local/score_phonemes.sh" "$data/test/text-phone" "$exp/decode_test" "$results" \
    ++name="$(run_name)"
  if [[ -e $data/test/phone-scores ]]; then
    "$PYTHON" "$root/tools/pronunciation_eval.py" ++pred_file="$exp/decode_test/hyp.jsonl" \
      ++canonical_file="$data/test/text-phone" ++phone_scores="$data/test/phone-scores" \
      ++utt_scores="$data/test/utt-scores" ++output_file="$exp/decode_test/pronunciation.jsonl"
  fi
fi
