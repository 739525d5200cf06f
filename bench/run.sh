#!/usr/bin/env bash
# Ours and upstream's, side by side on this machine; writes bench/RESULTS.md. See bench/README.md.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=local/parse_options.sh
. "$here/../local/parse_options.sh"

upstream="" part=scp2jsonl,http,train,decode,head,encoder,align runs=5
options=(upstream part runs)
usage="usage: bash bench/run.sh --upstream DIR [options]

Compares with Fun-ASR's own tools, on one machine in one run; about 30 minutes on 2 idle cores, the first time 10 more.
Where QWEN_ASR_PYTHON names a Python that has qwen-asr (docs/forced_aligner.md), also with its align().

Options:
  --upstream DIR    a clone of FunAudioLLM/Fun-ASR
  --part LIST       scp2jsonl,http,train,decode,head,encoder,align or some of these; only a run of all seven writes
                    bench/RESULTS.md, others write bench/work/RESULTS.md
  --runs N          runs of each side, in turn (default 5)"
parse_options "$@"
((${#overrides[@]} == 0)) || refuse "there are no ++keys here"
for name in ${part//,/ }; do
  [[ ,scp2jsonl,http,train,decode,head,encoder,align, == *,$name,* ]] || refuse "there is no part '$name'"
done
[[ ,$part, != *,scp2jsonl,* && ,$part, != *,http,* ]] || [[ -d $upstream ]] ||
  refuse "scp2jsonl and http want --upstream DIR, a clone of FunAudioLLM/Fun-ASR"

# shellcheck source=local/env.sh
. "$here/../local/env.sh"
work=$here/work corpus=$root/egs/mini/asr/data/full
mkdir -p "$work"

if [[ ! -e $corpus/test_mix.jsonl ]]; then
  bash "$root/egs/mini/asr/run.sh" --stop-stage 1
fi
if [[ ! -e $work/tiny/model.pt ]]; then
  "$PYTHON" "$root/tools/make_tiny_model.py" --config "$root/egs/mini/asr/conf/tiny_model.yaml" \
    ++text_files="[$corpus/train/text,$corpus/train_zh/text]" ++format=funasr ++output_dir="$work/tiny"
fi
# Decoding wants texts that end: a model that has learnt something, in FunASR's layout.
if [[ ,$part, == *,decode,* && ! -e $work/trained/speechllm.json ]]; then
  (cd "$root/egs/mini/asr" && bash "$root/finetune.sh" --config conf/train.yaml ++model="$work/tiny" \
    ++output_dir="$work/trained" ++train_data_set_list=data/full/train.jsonl \
    ++valid_data_set_list=data/full/dev.jsonl ++train_conf.max_epoch=10 ++train_conf.validate_interval=0)
fi
if [[ ,$part, == *,align,* && ! -e $work/aligner/config.json ]]; then
  "$PYTHON" "$root/tools/make_tiny_model.py" --config "$root/egs/mini/align/conf/tiny_model.yaml" \
    ++text_files="[$corpus/train/text,$corpus/train_zh/text]" ++format=qwen ++output_dir="$work/aligner"
fi

"$PYTHON" "$here/compare.py" ++upstream="$upstream" ++parts="[$part]" ++runs="$runs"
