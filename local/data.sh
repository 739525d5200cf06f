# data.sh: where the files of a data set are, in our naming and in Fun-ASR's.
# shellcheck shell=bash disable=SC2034  # the variables are for the caller

# find_set PREFIX...: the first of these sets that exists. Sets scp, text and jsonl, and the arrays segments and hotwords:
# the words that hand such a file to a tool, if there is one.
#   data/train -> data/train/wav.scp   data/train/text       data/train/{segments,hotwords}   data/train.jsonl
#           or -> data/train_wav.scp   data/train_text.txt   data/train_hotwords.txt          data/train_example.jsonl
find_set() {
  local prefix
  for prefix in "${@%/}"; do
    segments=() hotwords=()
    if [[ -e $prefix/wav.scp ]]; then
      scp=$prefix/wav.scp text=$prefix/text jsonl=$prefix.jsonl
      [[ ! -e $prefix/segments ]] || segments=("++segments_file=$prefix/segments")
      [[ ! -e $prefix/hotwords ]] || hotwords=("++hotwords_file=$prefix/hotwords")
      return
    elif [[ -e ${prefix}_wav.scp ]]; then
      scp=${prefix}_wav.scp text=${prefix}_text.txt jsonl=${prefix}_example.jsonl
      [[ ! -e ${prefix}_hotwords.txt ]] || hotwords=("++hotwords_file=${prefix}_hotwords.txt")
      return
    fi
  done
  echo "error: no data set $1: neither $1/wav.scp nor $1_wav.scp is there; docs/formats.md says what they hold" >&2
  return 1
}
