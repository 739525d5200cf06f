#!/usr/bin/env bash
# score_alignment.sh GOLD.jsonl DECODE_DIR RESULTS [report.py's options ...]: the boundary errors of DECODE_DIR, its report,
# and its row in the Markdown file RESULTS; ++baseline=DIR compares with an earlier decoding of the same set.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
gold=$1 dir=$2 results=$3

"$PYTHON" "$root/tools/report.py" ++ref="$gold" ++decode_dir="$dir" ++results="$results" "${@:4}"
