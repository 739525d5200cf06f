"""TIMIT's ``.wrd`` and ``.phn``, ``start end label`` per line, and ``.txt``; in samples at 16 kHz (its readme.doc)."""

from __future__ import annotations

import re

from speechllm.errors import UserError
from speechllm.formats.times.word import Word, read_text

RATE = 16000
PAUSES = {"h#", "pau", "epi"}
LINE = re.compile(r"(\d+)\s+(\d+)\s+(\S+)\s*")


def read(path: str) -> list[Word]:
    """The words or phones; pauses are left out. Raises UserError: a line that is not of this form."""
    words = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if found := LINE.fullmatch(line):
            words.append(Word(found[3], int(found[1]) / RATE, int(found[2]) / RATE))
        elif line.strip():
            raise UserError(f"{path}:{number}: `start end label` in samples expected, found {line!r}; mend the line")
    return [word for word in words if word.text not in PAUSES]


def sentence(text: str) -> str:
    """The sentence of a ``.txt``, which begins with the samples that it lasts."""
    return re.sub(r"\A\s*\d+\s+\d+\s+", "", text)
