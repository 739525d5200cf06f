"""Normalise a file of `utt text` rows for scoring: whisper_mix_normalize.py IN OUT [kana|basic] [++like=REF]."""

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
    source: str
    """File of `utt text` or `utt<TAB>text` rows: the first word. An id alone is an empty text."""
    target: str
    """File to write, `utt<TAB>text` in the same order: the second word."""
    normalizer: Literal["mixed", "kana", "basic"] = "mixed"
    """The third word. kana: Japanese to kana; basic: case and punctuation only, numbers as written."""
    like: str = ""
    """For hypotheses: the file of references. Numbers are then written in the language of each reference."""


def main(options: Options) -> None:
    from speechllm.text import open_normalizer
    from speechllm.text.rows import read_rows, write_rows

    normalizer = open_normalizer(options.normalizer)
    texts = read_rows(options.source)
    write_rows(options.target, normalizer.rows(texts, like=read_rows(options.like) if options.like else None))
    logging.info("%d rows by normaliser %s %s: %s", len(texts), normalizer.name, normalizer.version, options.target)


if __name__ == "__main__":
    cli.run(main, Options, __doc__, positional=("source", "target", "normalizer"))
