#!/usr/bin/env bash
# Fine-tune Fun-ASR-Nano on AISHELL-1, 150 hours of read Mandarin to train on.
set -euo pipefail
train_config=conf/adaptor.yaml
. "$(dirname "${BASH_SOURCE[0]}")/../../../local/stages.sh"

corpus="" mirror="" max_bad="" tokenizer=""
options+=(corpus mirror max_bad tokenizer)
usage="usage: bash run.sh [--corpus DIR] [options] [++key=value ...]

Stages, each of which can be run alone and again:
  0  the corpus as Kaldi files in data/<size>/
  1  JSONL of every set
  2  fine-tune into exp/<run>/; the same command after a kill goes on where the run stopped
  3  decode the test set
  4  normalise, compute-wer, report, and a row in RESULTS.md (quick: in exp/<run>/RESULTS.md)

Options:
  --corpus DIR      your copy of the corpus (default: it is downloaded into downloads/, 15 GB)
  --mirror URL      server to download from (default: https://www.openslr.org)
  --max-bad N       recordings without transcript, or the reverse, that may be left out (default: 400)
  --tokenizer NAME  counts text_length in the JSONL (default: Qwen/Qwen3-0.6B, from the hub; or a folder)
$common_options"
start_recipe "$@"

if stage 0 "the corpus as Kaldi files in $data"; then
  "$PYTHON" local/prepare_aishell.py ++output_dir="$data" ++size="$size" ${corpus:+++corpus="$corpus"} \
    ${mirror:+++mirror="$mirror"} ${max_bad:+++max_bad="$max_bad"}
  for set in train dev test; do
    "$PYTHON" "$root/tools/validate_data.py" "$data/$set"
  done
fi

if stage 1 "JSONL of every set"; then
  for set in train dev test; do # the transcripts have numbers in words and no punctuation, hence itn=false
    "$PYTHON" "$root/tools/scp2jsonl.py" ++scp_file="$data/$set/wav.scp" ++transcript_file="$data/$set/text" \
      ++jsonl_file="$data/$set.jsonl" ++itn=false ${tokenizer:+++tokenizer="$tokenizer"}
  done
fi

if stage 2 "fine-tune into $exp"; then
  bash "$root/finetune.sh" --nproc "$nproc" --config "$config" ++output_dir="$exp" \
    ++train_data_set_list="$data/train.jsonl" ++valid_data_set_list="$data/dev.jsonl" "${overrides[@]}"
fi

if stage 3 "decode test"; then
  bash "$root/decode.sh" --model-dir "$exp" --data "$data/test" --score false
fi

if stage 4 "score test"; then
  bash "$root/local/score.sh" "$data/test/text" "$exp/decode_test" "$results"
fi
