#!/usr/bin/env bash
# Decode a data set with a trained model, and score it where its text is known. The recipes call this, and so do you.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

model_dir="" data="" score=true
options=(model_dir data score)
usage="usage: bash decode.sh --model-dir DIR --data SET [--score false] [++key=value ...]

  --model-dir DIR  the folder that finetune.sh wrote, or a hub name
  --data SET       SET/wav.scp and SET/text, or SET_wav.scp and SET_text.txt as for Fun-ASR; words of SET/hotwords
                   (SET_hotwords.txt) stand in the prompts
  --score false    decode only (default: true, where the text is there)
  ++key=value      passed on; python tools/decode.py --help lists the keys

Writes hyp.txt and hyp.jsonl into DIR/decode_SET (exp/NAME/decode_SET for a hub name), and with the text cer.txt,
score.json and report.html beside them, and a row into RESULTS.md above."
. "$here/local/parse_options.sh"
parse_options "$@"
[[ $score == true || $score == false ]] || refuse "--score is true or false, got '$score'"
[[ $model_dir && $data ]] || refuse "--model-dir and --data are needed"
. "$here/local/env.sh"
. "$here/local/data.sh"

find_set "$data"
home=$model_dir
[[ -d $home ]] || home=exp/$(basename "$model_dir")
out=$home/decode_$(basename "$data")
"$PYTHON" "$root/tools/decode.py" ++model_dir="$model_dir" ++scp_file="$scp" ++output_file="$out/hyp.txt" \
  "${segments[@]}" "${hotwords[@]}" "${overrides[@]}"
if [[ $score == true && -e $text ]]; then
  bash "$root/local/score.sh" "$text" "$out" "$home/RESULTS.md"
fi
