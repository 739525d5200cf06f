#!/usr/bin/env bash
# score.sh TEXT DECODE_DIR RESULTS [NORMALIZER]: normalise TEXT and DECODE_DIR/hyp.txt, count the errors, report, and put
# the row into the Markdown file RESULTS.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
text=$1 dir=$2 results=$3 normalizer=${4:-mixed}

"$PYTHON" "$root/tools/whisper_mix_normalize.py" "$text" "$dir/ref.norm" "$normalizer"
"$PYTHON" "$root/tools/whisper_mix_normalize.py" "$dir/hyp.txt" "$dir/hyp.norm" "$normalizer" ++like="$text"
compute-wer -s utt "$dir/ref.norm" "$dir/hyp.norm" "$dir/cer.txt"
sed -n '/^====/,$p' "$dir/cer.txt"
"$PYTHON" "$root/tools/report.py" ++ref="$text" ++decode_dir="$dir" ++results="$results" ++normalizer="$normalizer"
