"""Score a decoded set: score.json and report.html beside its hypotheses, and its row in RESULTS.md."""

from __future__ import annotations

import logging
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from speechllm import cli
from speechllm.errors import UserError

WORST = 10  # utterances that are printed


@dataclass
class Options:
    ref: str
    """Reference `text` file of the set."""
    decode_dir: str
    """Folder of the hypotheses, exp/<run>/decode_<set>: hyp.txt, and hyp.jsonl, decode.json, cer.txt if there."""
    results: str = "RESULTS.md"
    """Markdown table that gets the row of this run and set."""
    name: str = ""
    """Name of the run in that table; by default the folder above decode_dir."""
    normalizer: Literal["mixed", "kana", "basic"] = "mixed"
    """As for tools/whisper_mix_normalize.py."""


def main(options: Options) -> None:
    from speechllm import report
    from speechllm.metrics import error_view
    from speechllm.metrics.error_rate import compare_texts, summary
    from speechllm.text.rows import read_rows

    folder = Path(options.decode_dir)
    result = compare_texts(read_rows(options.ref), read_rows(folder / "hyp.txt"), options.normalizer)
    check(folder / "cer.txt", result.total.to_dict())
    problems = report.unreadable(folder / "hyp.jsonl")
    score = summary(result, options.normalizer)
    score["counts"]["unreadable"] = len(problems)
    for utterance in reversed(error_view.worst(result, WORST)):
        print(error_view.as_text(utterance))
    for fault in ("missing", "unreadable"):
        if score["counts"][fault]:
            logging.warning("%d utterance(s) %s, scored as empty", score["counts"][fault], fault)
    report.publish(folder, score, error_view.as_html(result, problems), options.results, options.name)


def check(path: Path, counts: dict[str, int]) -> None:
    """compute-wer's summary must tell the same counts. Raises UserError where it does not."""
    if not path.is_file():
        return
    found = re.findall(
        r"^Overall -> .* N=(\d+) Cor=(\d+) Sub=(\d+) Del=(\d+) Ins=(\d+)$", path.read_text("utf-8"), re.M
    )
    if not found or [int(number) for number in found[-1]] != list(counts.values()):
        raise UserError(
            f"{path}: N Cor Sub Del Ins are {' '.join(found[-1]) if found else 'not there'}, but hyp.txt and the "
            f"reference give {' '.join(map(str, counts.values()))}; the files are out of step: normalise both again "
            "(the hypotheses with ++like=<reference>), then run compute-wer"
        )


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
