#!/usr/bin/env bash
# score_alignment.sh GOLD.jsonl DECODE_DIR RESULTS [BASELINE_DIR]: the boundary errors of DECODE_DIR, its report, and its
# row in the Markdown file RESULTS; with BASELINE_DIR, an earlier decoding of the same set, the comparison with that.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
gold=$1 dir=$2 results=$3 baseline=${4:-}

"$PYTHON" "$root/tools/report.py" ++ref="$gold" ++decode_dir="$dir" ++results="$results" ++baseline="$baseline"
