"""Score pronunciation against canonical phonemes, and the scores against human ones where they are given."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from speechllm import cli


@dataclass
class Options:
    pred_file: str
    """What was recognised: the decoder's hyp.jsonl, with its confidences, or rows of `utt phoneme ...`."""
    canonical_file: str
    """What should have been said: Kaldi's text-phone, `utt phoneme ...`."""
    output_file: str
    """JSONL that is written, per utterance its score and each phoneme's."""
    phone_scores: str = ""
    """Human scores, `utt` and one number per canonical phoneme: gives F1 of the detection of mispronunciations."""
    threshold: float = 0.5
    """A phoneme with a human score below it is mispronounced. 0.5 is speechocean762's own (of 0 to 2, the mean of five
    experts): below it the corpus says what was pronounced instead. A higher one counts accented phonemes too."""
    utt_scores: str = ""
    """Human scores, `utt number`: gives the correlation with the utterances' scores."""
    field: str = "text"
    """What is taken from a .jsonl: text, or ctc_text."""
    output_json: str = ""
    """File for the numbers that are printed."""


def main(options: Options) -> None:
    from speechllm.files import atomic_write, write_json
    from speechllm.metrics import pronunciation
    from speechllm.metrics.phoneme_files import read_hypotheses
    from speechllm.text.rows import read_rows

    heard = read_hypotheses(options.pred_file, options.field)
    rows = pronunciation.assess(read_rows(options.canonical_file), heard)
    found = pronunciation.summary(rows)
    if unreadable := [key for key, row in heard.items() if row.error]:
        logging.warning("%d utterance(s) unreadable, scored as empty, first %s", len(unreadable), unreadable[0])
    if options.phone_scores:
        labels = pronunciation.read_scores(options.phone_scores, rows, per_phone=True)
        found["detection"] = pronunciation.detection(rows, labels, options.threshold)
        found["phone_correlation"] = pronunciation.phone_correlation(rows, labels)
    if options.utt_scores:
        scores = pronunciation.read_scores(options.utt_scores, rows, per_phone=False)
        found["utterance_correlation"] = pronunciation.utterance_correlation(rows, scores)
    print(pronunciation.as_text(found))
    with atomic_write(options.output_file) as file:
        file.writelines(json.dumps(row.to_dict(), ensure_ascii=False) + "\n" for row in rows)
    if options.output_json:
        write_json(options.output_json, found)


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
