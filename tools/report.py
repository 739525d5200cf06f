"""Score a decoded set: score.json and report.html beside its hypotheses, and its row in RESULTS.md."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from speechllm import cli


@dataclass
class Options:
    ref: str
    """Reference of the set: a `text` file; where words were aligned, the JSONL with their gold timestamps."""
    decode_dir: str
    """Folder of the hypotheses, exp/<run>/decode_<set>: hyp.txt, and hyp.jsonl, decode.json, cer.txt if there."""
    results: str = "RESULTS.md"
    """Markdown table that gets the row of this run and set."""
    name: str = ""
    """Name of the run in that table; by default the folder above decode_dir."""
    normalizer: Literal["mixed", "kana", "basic"] = "mixed"
    """Of texts: as for tools/whisper_mix_normalize.py."""
    baseline: str = ""
    """Of alignments: folder of another decoding of the set, such as that before fine-tuning, to compare with."""


def main(options: Options) -> None:
    from speechllm import report
    from speechllm.views import view

    folder = Path(options.decode_dir)
    found = view(folder, options.ref, options.normalizer, options.baseline)
    print(*found.lines, sep="\n")
    for fault in ("missing", "unreadable"):
        if found.score["counts"][fault]:
            logging.warning("%d utterance(s) %s, %s", found.score["counts"][fault], fault, found.without)
    report.publish(folder, found.score, found.body, options.results, options.name)


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
