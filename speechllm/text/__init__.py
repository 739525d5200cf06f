"""Text as it is scored: the normalisers, by name, each with a version that goes into every score."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Protocol

from speechllm.errors import UserError

NAMES = ("mixed", "kana", "basic")
PHONEMES = ("phonemes", "timit39")
"""Those of phoneme sequences, which are compared by phonemes, not by words or characters."""


class Normalizer(Protocol):
    """Brings texts that differ only in form to one form.

    Attributes:
        name: one of NAMES or PHONEMES.
        version: ours, raised with every change of the output, then the libraries inside with theirs.
    """

    name: str
    version: str

    def rows(self, texts: Mapping[str, str], like: Mapping[str, str] | None = None) -> dict[str, str]:
        """The texts by utterance, normalised.

        Args:
            texts: text by utterance.
            like: the references, where ``texts`` are hypotheses: each row is then written as its reference is (numbers
                in Chinese beside a Chinese reference). By default every row goes by itself.
        """
        ...


@functools.cache
def open_normalizer(name: str) -> Normalizer:
    """The one instance of a normaliser.

    ``mixed``: English by Whisper's English normaliser; rows with Chinese characters with numbers and symbols as they
    are spoken, simplified; all else by Whisper's basic normaliser. ``kana``: the same, with Japanese as it is spoken,
    in katakana. ``basic``: Whisper's basic normaliser for every row, so numbers stay as they are written.
    ``phonemes``: sequences of phonemes as they stand; ``timit39``: those of TIMIT folded to the 39 classes.

    Raises:
        UserError: no such name, or a library that it needs is not installed.
    """
    from speechllm.text import basic, mixed, phones

    if name in PHONEMES:
        return phones.PhonemeNormalizer(fold=name == "timit39")
    if name not in NAMES:
        raise UserError(f"unknown normaliser {name}; there are: {', '.join(NAMES + PHONEMES)}")
    return basic.BasicNormalizer() if name == "basic" else mixed.MixedNormalizer(kana=name == "kana")
