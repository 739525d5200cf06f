# phonemes.sh: what the phoneme recipes share. Sourced after stages.sh; uses $data, $exp, $start, $model, $encoder and $llm.
# shellcheck shell=bash disable=SC2154  # the recipe's variables

# phoneme_model FILE,...: the phonemes of these files become tokens, and the model that has them goes to $start. It is made
# from $encoder and $llm, or from $model.
phoneme_model() {
  local from=(++model="$model") base=$model
  if [[ $encoder && $llm ]]; then
    from=(++encoder="$encoder" ++llm="$llm") base=$llm
  fi
  rm -rf "$data/tokenizer" "$start"
  "$PYTHON" "$root/tools/build_phoneme_vocab.py" --data "$1" --base_tokenizer "$base" --save_dir "$data/tokenizer"
  "$PYTHON" "$root/tools/compose_model.py" "${from[@]}" ++tokenizer="$data/tokenizer" ++output_dir="$start" ++ctc=true
}

# phoneme_jsonl DIR: DIR.jsonl of the folder's wav.scp and text-phone.
phoneme_jsonl() {
  "$PYTHON" "$root/tools/scp2jsonl.py" ++scp_file="$1/wav.scp" ++transcript_file="$1/text-phone" \
    ++jsonl_file="$1.jsonl" ++tokenizer="$data/tokenizer" ++prompt="<audio>请你做语音评测"
}

# train_phonemes RUN...: checks the run, then trains it.
train_phonemes() {
  "$PYTHON" "$root/tools/doctor.py" "$@"
  bash "$root/finetune.sh" --nproc "$nproc" "$@"
}

# decode_phonemes DIR SET: into DIR/decode_SET.
decode_phonemes() {
  "$PYTHON" "$root/tools/decode.py" ++model_dir="$1" ++jsonl_file="$data/$2.jsonl" ++output_file="$1/decode_$2/hyp.txt"
}

# run_name: how RESULTS.md calls the run; nobody may take a tiny model's score for a real one's.
run_name() {
  local name=${exp#exp/}
  [[ $encoder || $model != ../../mini/* ]] || name+=" (tiny model)"
  echo "$name"
}
