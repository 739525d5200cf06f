"""Phonemes as tokens: each symbol is one token of the LLM, never split, never merged with its neighbour.

In the tokenizer a symbol stands as ``<|ph_SYMBOL|>``, since the bare one (``a``, ``er``, ``s``) would be cut out of
words of the prompt too. In all data it stands as it is, symbols separated by spaces: ``sil sh iy``.

An answer is phonemes alone, unless the tokenizer has the marks: then the stretches between ``<PH_START>`` and
``<PH_END>`` are phonemes, and all else is text, for data that teaches both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from speechllm.errors import UserError

MARKS = ("<PH_START>", "<PH_END>")
TOKEN = re.compile(r"<\|ph_(\S+)\|>")
MARKED = re.compile(f"({re.escape(MARKS[0])}.*?{re.escape(MARKS[1])})", re.DOTALL)


def token(symbol: str) -> str:
    """How the tokenizer writes a symbol."""
    return symbol if symbol in MARKS else f"<|ph_{symbol}|>"


def stretches(answer: str) -> list[list[str]]:
    """The phoneme sequences of an answer: those between marks or, without marks, the whole of it.

    Raises:
        UserError: a mark without its other one.
    """
    if not any(mark in answer for mark in MARKS):
        return [answer.split()]
    parts = MARKED.split(answer)
    parts[1::2] = [part.removeprefix(MARKS[0]).removesuffix(MARKS[1]) for part in parts[1::2]]
    if any(mark in part for part in parts for mark in MARKS):
        raise UserError(f"{MARKS[0]} and {MARKS[1]} do not come in pairs; correct the text")
    return [part.split() for part in parts[1::2]]


class Phonemes:
    """The phonemes that a tokenizer was extended with; none, and every answer is plain text.

    Args:
        tokenizer: transformers' tokenizer, or tokenizers' own.

    Attributes:
        ids: token id by symbol, in the order of the ids.
        marks: ids of the two marks; empty without them.
    """

    def __init__(self, tokenizer: Any):
        added = _added(tokenizer)
        self.tokenizer = tokenizer
        self.ids = {found[1]: added[name] for name in sorted(added, key=added.get) if (found := TOKEN.fullmatch(name))}
        self.marks = [added[mark] for mark in MARKS if mark in added]
        self._symbols = {i: symbol for symbol, i in self.ids.items()} | dict(zip(self.marks, MARKS, strict=False))

    def encode(self, answer: str) -> list[int]:
        """Token ids of an answer.

        Raises:
            UserError: a symbol that is not among the tokenizer's, or a mark without its other one.
        """
        if not self.ids:
            return self._text(answer)
        if not self.marks:
            return self._phonemes(answer.split())
        ids, inside = [], stretches(answer)
        for number, part in enumerate(MARKED.split(answer)):
            if number % 2:
                ids += [self.marks[0], *self._phonemes(inside[number // 2]), self.marks[1]]
            else:
                ids += self._text(part)
        return ids

    def symbols(self, answer: str) -> list[str]:
        """The phonemes of an answer."""
        plain = self.marks and MARKS[0] not in answer
        return [] if plain else [symbol for stretch in stretches(answer) for symbol in stretch]

    def decode(self, ids: Sequence[int]) -> str:
        """The answer that :func:`encode` turns into these ids; other special tokens are left out.

        Symbols go by their ids: a byte-level tokenizer's own ``decode`` writes ``<|ph_æ|>`` as a broken character.
        """
        parts = []
        for special, run in groupby(ids, key=self._symbols.__contains__):
            run = list(run)
            if special:
                parts.append(" ".join(self._symbols[i] for i in run))
            else:
                parts.append(self.tokenizer.decode(run, skip_special_tokens=True))
        return " ".join(part.strip() for part in parts if part.strip())

    def _text(self, text: str) -> list[int]:
        found = self.tokenizer.encode(text, add_special_tokens=False)
        return getattr(found, "ids", found)  # tokenizers gives more than the ids

    def _phonemes(self, symbols: Iterable[str]) -> list[int]:
        symbols = list(symbols)
        if unknown := sorted({symbol for symbol in symbols if symbol not in self.ids}):
            raise UserError(
                f"{' '.join(unknown)}: not among the model's {len(self.ids)} phonemes; make its vocabulary with "
                "tools/build_phoneme_vocab.py from all data, or correct the text"
            )
        return [self.ids[symbol] for symbol in symbols]


def _added(tokenizer: Any) -> dict[str, int]:
    if hasattr(tokenizer, "get_added_vocab"):
        return tokenizer.get_added_vocab()
    return {added.content: i for i, added in tokenizer.get_added_tokens_decoder().items()}
