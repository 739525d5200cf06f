#!/usr/bin/env bash
# Fine-tune Fun-ASR-Nano on LibriSpeech, 100 to 960 hours of read English to train on.
set -euo pipefail
train_config=conf/adaptor.yaml
. "$(dirname "${BASH_SOURCE[0]}")/../../../local/stages.sh"

parts=train-clean-100,dev-clean,test-clean,test-other
corpus="" mirror="" max_bad="" tokenizer=""
options+=(corpus parts mirror max_bad tokenizer)
usage="usage: bash run.sh [--corpus DIR] [options] [++key=value ...]

Stages, each of which can be run alone and again:
  0  the corpus as Kaldi files in data/<size>/
  1  JSONL of every set
  2  fine-tune into exp/<run>/; the same command after a kill goes on where the run stopped
  3  decode the test sets
  4  normalise, compute-wer, report, and a row in RESULTS.md (quick: in exp/<run>/RESULTS.md)

Options:
  --corpus DIR      your copy of the corpus (default: its parts are downloaded into downloads/)
  --parts LIST      parts of the corpus: those of train make one set, those of dev another, each of test its own
                    (default: $parts)
  --mirror URL      server to download from (default: https://www.openslr.org)
  --max-bad N       recordings without transcript, or the reverse, that may be left out (default: 0)
  --tokenizer NAME  counts text_length in the JSONL (default: Qwen/Qwen3-0.6B, from the hub; or a folder)
$common_options"
start_recipe "$@"

tests=()
IFS=, read -ra names <<<"$parts"
for name in "${names[@]}"; do
  [[ $name != test-* ]] || tests+=("$name")
done

if stage 0 "the corpus as Kaldi files in $data"; then
  "$PYTHON" local/prepare_librispeech.py ++output_dir="$data" ++size="$size" ++parts="[$parts]" \
    ${corpus:+++corpus="$corpus"} ${mirror:+++mirror="$mirror"} ${max_bad:+++max_bad="$max_bad"}
  for set in train dev "${tests[@]}"; do
    "$PYTHON" "$root/tools/validate_data.py" "$data/$set"
  done
fi

if stage 1 "JSONL of every set"; then
  for set in train dev "${tests[@]}"; do # the transcripts have numbers in words and no punctuation, hence itn=false
    "$PYTHON" "$root/tools/scp2jsonl.py" ++scp_file="$data/$set/wav.scp" ++transcript_file="$data/$set/text" \
      ++jsonl_file="$data/$set.jsonl" ++itn=false ${tokenizer:+++tokenizer="$tokenizer"}
  done
fi

if stage 2 "fine-tune into $exp"; then
  bash "$root/finetune.sh" --nproc "$nproc" --config "$config" ++output_dir="$exp" \
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
