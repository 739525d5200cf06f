"""Phoneme sequences as they are scored: what marks them is taken out, and TIMIT's phones are folded where asked.

The 39 classes are those of Lee and Hon, "Speaker-independent phone recognition using hidden Markov models", IEEE TASSP
37(11), 1989, in which TIMIT has been scored since. As in Kaldi's egs/timit/s5 (timit_norm_trans.pl) the glottal stop
``q`` is deleted, and silences that come to stand side by side stay as many as they were.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from speechllm.errors import UserError
from speechllm.phonemes import MARKS, stretches

SAME = "ae aw ay b ch d dh dx eh ey f g iy jh k ow oy p r s t th uh v w y z"
CLASSES = {
    "aa": "aa ao",
    "ah": "ah ax ax-h",
    "er": "er axr",
    "hh": "hh hv",
    "ih": "ih ix",
    "l": "l el",
    "m": "m em",
    "n": "n en nx",
    "ng": "ng eng",
    "sh": "sh zh",
    "uw": "uw ux",
    "sil": "bcl dcl gcl kcl pcl tcl h# pau epi" + " sil cl vcl",  # the last three are of the set of 48
    "": "q",
}
TIMIT39 = {symbol: symbol for symbol in SAME.split()} | {
    symbol: name for name, symbols in CLASSES.items() for symbol in symbols.split()
}
SILENCES = frozenset(("sil", "h#", "pau", "epi"))
"""Silence alone: TIMIT's closures are a part of their stop, and become ``sil`` in its 39 classes only."""
MARK = re.compile("|".join(MARKS))


def words(answer: str) -> list[str]:
    """The words of an answer; a mark is one, whatever it stands next to."""
    return MARK.sub(r" \g<0> ", answer).split()


def heard(words: Sequence[str]) -> list[int]:
    """Which words of a hypothesis are phonemes: all of them without marks, else those from a start mark to an end mark.

    A model may leave a stretch open; it goes to the end.
    """
    if MARKS[0] not in words:
        return [i for i, word in enumerate(words) if word not in MARKS]
    found, inside = [], False
    for i, word in enumerate(words):
        if word in MARKS:
            inside = word == MARKS[0]
        elif inside:
            found.append(i)
    return found


class PhonemeNormalizer:
    """Sequences of phonemes, parted by one blank each; case counts.

    Args:
        fold: TIMIT's 61 (or 48) phones to the 39 classes.
    """

    version = "1"

    def __init__(self, fold: bool):
        self.name, self._fold = "timit39" if fold else "phonemes", fold

    def rows(self, texts: Mapping[str, str], like: Mapping[str, str] | None = None) -> dict[str, str]:
        """The sequences by utterance.

        With ``like`` these are hypotheses, and none is refused: their phonemes are those that :func:`heard` finds, and
        what is none of TIMIT's stays, to be counted as an error.

        Raises:
            UserError: a reference with a mark without its other one or, to be folded, with what is not TIMIT's.
        """
        return {key: " ".join(self._symbols(key, text, like is not None)) for key, text in texts.items()}

    def _symbols(self, key: str, text: str, hypothesis: bool) -> list[str]:
        if hypothesis:
            said = words(text)
            symbols = [said[i] for i in heard(said)]
        else:
            try:
                symbols = [symbol for stretch in stretches(text) for symbol in stretch]
            except UserError as error:
                raise UserError(f"{key}: {error}") from error
        if not self._fold:
            return symbols
        unknown = [symbol for symbol in symbols if symbol not in TIMIT39]
        if unknown and not hypothesis:
            raise UserError(
                f"{key}: {unknown[0]} is none of TIMIT's 61 phones; correct the reference, or score without folding "
                "(normalizer phonemes, --fold none)"
            )
        folded = (TIMIT39.get(symbol, symbol) for symbol in symbols)
        return [symbol for symbol in folded if symbol]
