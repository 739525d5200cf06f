#!/usr/bin/env bash
# Every test, from nothing: bash tests/run.sh [--full] [words for pytest ...]
# --full also runs the whole recipes, not only their quick forms.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../local/env.sh"

if [[ ${1:-} == --full ]]; then
  shift
  export SPEECHLLM_FULL=1
fi
need_extras dev kana
cd "$root"

SHARED_DATA=$(realpath -m "${SHARED_DATA:-../shared/data}")
export SHARED_DATA
corpora=(fsdd aishell_sample fixtures timit_sample speechocean762_part)
for corpus in "${corpora[@]}"; do
  if [[ -d $SHARED_DATA/$corpus ]]; then
    echo "corpus $corpus: $SHARED_DATA/$corpus"
  else
    echo "corpus $corpus: not at $SHARED_DATA/$corpus, so its tests are skipped; SHARED_DATA=DIR says where it is"
  fi
done

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # the models of the tests are tiny, and the machine may be busy
exec "$PYTHON" -m pytest -q --numprocesses auto --dist loadfile --durations=15 "$@" # a file is one process: its runs are shared
