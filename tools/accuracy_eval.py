"""Phoneme error rate, accuracy and confusions of phoneme sequences: ++pred_file, ++ref_file."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from speechllm import cli
from speechllm.errors import UserError


@dataclass
class Options:
    ref_file: str
    """References, one sequence of phonemes per line, separated by spaces."""
    pred_file: str = ""
    """Hypotheses, likewise, or the decoder's hyp.jsonl; by default that of decode_dir."""
    ids: bool = False
    """Each line begins with its utterance's id, and lines match by it. With a .jsonl they always do."""
    field: str = "text"
    """What is taken from a .jsonl: text, or ctc_text."""
    ignore_sil: bool = False
    """Take sil, h#, pau and epi out of both sides first, and in the 39 classes the closures too."""
    fold: Literal["none", "timit39"] = "none"
    """timit39: TIMIT's 61 phones to the 39 classes in which it is scored."""
    decode_dir: str = ""
    """exp/<run>/decode_<set>: gets score.json and report.html."""
    results: str = "RESULTS.md"
    """Markdown table that gets the row of that run and set."""
    name: str = ""
    """Name of the run in that table; by default the folder above decode_dir."""
    output_json: str = ""
    """File for all numbers, with every confusion and phoneme."""


def main(options: Options) -> None:
    from speechllm import report
    from speechllm.files import write_json
    from speechllm.metrics import error_view, phoneme_error, phoneme_files, phoneme_view
    from speechllm.metrics.error_rate import summary
    from speechllm.text.rows import read_rows

    if not (options.pred_file or options.decode_dir):
        raise UserError("nothing to score; give ++pred_file or ++decode_dir")
    predicted = options.pred_file or str(Path(options.decode_dir) / "hyp.jsonl")
    if options.ids or predicted.endswith(".jsonl"):
        references, heard = read_rows(options.ref_file), phoneme_files.read_hypotheses(predicted, options.field)
    else:
        references, heard = phoneme_files.read_pairs(predicted, options.ref_file)
    normalizer = "phonemes" if options.fold == "none" else options.fold
    said = phoneme_files.texts(heard)
    result = phoneme_error.compare_phonemes(references, said, normalizer, options.ignore_sil)
    problems = {key: row.error for key, row in heard.items() if row.error}
    score = summary(result, normalizer) | phoneme_error.rates(result)
    score |= {"ignore_sil": options.ignore_sil, "field": options.field}
    score["counts"]["unreadable"] = len(problems)
    confusions, phonemes = phoneme_error.confusions(result), phoneme_error.by_phoneme(result)
    print(report.headline(score), phoneme_view.as_text(score, confusions, phonemes), sep="\n")
    missing = [utterance.key for utterance in result.utterances if utterance.missing]
    for fault, keys in (("missing", missing), ("unreadable", list(problems))):
        if keys:
            logging.warning("%d utterance(s) %s, scored as empty, first %s", len(keys), fault, keys[0])
    if options.output_json:
        write_json(options.output_json, score | {"confusions": confusions, "phonemes": phonemes})
    if options.decode_dir:
        body = phoneme_view.as_html(confusions, phonemes) + error_view.as_html(result, problems)
        report.publish(options.decode_dir, score, body, options.results, options.name)


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
