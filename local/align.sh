# align.sh: what the alignment recipes share. Sourced after stages.sh; uses $data and $nproc.
# shellcheck shell=bash disable=SC2154  # the recipe's variables

# times_jsonl DIR TEXT LANGUAGE [OPTION ...]: DIR.jsonl of the folder's wav.scp, its table TEXT and words.ctm.
times_jsonl() {
  "$PYTHON" "$root/tools/prepare_aligner_data.py" ++scp_file="$1/wav.scp" ++transcript_file="$1/$2" \
    ++ctm_file="$1/words.ctm" ++language="$3" ++output_file="$1.jsonl" "${@:4}"
}

# train_aligner RUN...: checks the run, then trains it.
train_aligner() {
  "$PYTHON" "$root/tools/doctor.py" "$@"
  bash "$root/finetune.sh" --nproc "$nproc" "$@"
}

# align_set MODEL SET [DIR]: into DIR/decode_SET; DIR is the model's folder where it is left out.
align_set() {
  "$PYTHON" "$root/tools/decode.py" ++model_dir="$1" ++jsonl_file="$data/$2.jsonl" \
    ++output_file="${3:-$1}/decode_$2/hyp.txt"
}
