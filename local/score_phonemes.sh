#!/usr/bin/env bash
# score_phonemes.sh TEXT_PHONE DECODE_DIR RESULTS [accuracy_eval's options ...]: the phoneme error rate of DECODE_DIR, its
# report, and its row in the Markdown file RESULTS; then that of the model's CTC head, where it has one.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
text=$1 dir=$2 results=$3
options=("${@:4}")

"$PYTHON" "$root/tools/accuracy_eval.py" ++decode_dir="$dir" ++ref_file="$text" ++results="$results" "${options[@]}"
if grep -qs '"ctc_text"' "$dir/hyp.jsonl"; then
  echo "CTC head of the same model:"
  "$PYTHON" "$root/tools/accuracy_eval.py" ++pred_file="$dir/hyp.jsonl" ++field=ctc_text ++ids=true ++ref_file="$text" \
    ++output_json="$dir/ctc.json" "${options[@]}" | grep '^PER'
fi
