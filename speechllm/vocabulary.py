"""The phonemes of a corpus, and a tokenizer that has one token for each."""

from __future__ import annotations

import logging
import os
import re
import shutil
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from speechllm.errors import UserError
from speechllm.files import atomic_write
from speechllm.formats import chatml, conversations, kaldi
from speechllm.formats.tokens import find
from speechllm.phonemes import MARKS, TOKEN, Phonemes, stretches, token

LONGEST = 10  # characters of a symbol; the longest of espeak-ng, TIMIT and ARPAbet have 6
MOST = 500  # symbols; a language has about 100 at most, with stress or tone on each vowel
HAN = re.compile(r"[\u3400-\u9fff]")
TABLE = "phonemes.txt"
log = logging.getLogger("speechllm")


class Inventory(NamedTuple):
    """What the answers of some files hold.

    Args:
        counts: how often each symbol stands in them.
        answers: how many there are.
        marked: how many of them have marks; where any has, those without are text.
    """

    counts: Mapping[str, int]
    answers: int
    marked: int


def answers(paths: Iterable[str]) -> Iterator[tuple[str, str]]:
    """``(where, answer)`` of every row of conversations, of ChatML JSONLs, or of Kaldi tables such as ``text-phone``.

    Raises:
        UserError: no such file, or a row that is not of its form.
    """
    for path in paths:
        if not os.path.isfile(path):
            raise UserError(f"{path}: no such file; give conversations, a ChatML JSONL, or a text-phone")
        if conversations.first_byte(path) not in (b"[", b"{"):
            yield from ((where, answer) for _, answer, where in kaldi.lines(path))
            continue
        for row in conversations.rows(path):
            yield row.where, _answer(row)


def _answer(row: conversations.Row) -> str:
    if isinstance(row.value, dict) and "messages" in row.value:
        text = chatml.from_row(row.value, row.where, str(row.number)).text
        if not text:
            raise UserError(f"{row.where}: no assistant message, so no phonemes; add it or remove the row")
        return text
    try:
        if row.fault:
            raise ValueError(row.fault)
        return conversations.parse(row.value).answer
    except ValueError as error:
        raise UserError(f"{row.where}: {error}") from error


def collect(paths: Sequence[str]) -> Inventory:
    """Count the symbols of all rows: between the marks if any row has them, else in the whole of each answer.

    Raises:
        UserError: a row that is not of its form, or what looks like text.
    """
    counts: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    places: dict[bool, dict[str, str]] = {True: {}, False: {}}
    total = number = 0
    for where, answer in answers(paths):
        marked = any(mark in answer for mark in MARKS)
        total, number = total + 1, number + marked
        for symbol in (symbol for stretch in _stretches(answer, where) for symbol in stretch):
            counts[marked][symbol] += 1
            places[marked].setdefault(symbol, where)
    _refuse_text(places[number > 0])
    return Inventory(counts[number > 0], total, number)


def _stretches(answer: str, where: str) -> list[list[str]]:
    try:
        return stretches(answer)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _refuse_text(places: Mapping[str, str]) -> None:
    """Raise at what cannot be a phoneme, given where each symbol stands first."""
    mend = "write phonemes with spaces between them, and text outside of <PH_START> and <PH_END>"
    if not places:
        raise UserError(f"no phonemes in the data; {mend}")
    for symbol, where in places.items():
        if TOKEN.search(symbol):
            raise UserError(f"{where}: {symbol}: data has the bare symbol, {TOKEN.search(symbol)[1]}; correct the row")
        if len(symbol) > LONGEST or HAN.search(symbol):
            raise UserError(f"{where}: {symbol!r} looks like text, not like a phoneme; {mend}")
    if len(places) > MOST:
        some = ", ".join(list(places)[-5:])
        raise UserError(
            f"{len(places)} different symbols, over {MOST}: these look like words or syllables, not phonemes, such as "
            f"{some}; {mend}"
        )


def lookalikes(symbols: Iterable[str]) -> list[str]:
    """What to say of symbols that differ only in how Unicode composes them, or only in case."""
    composed = partial(unicodedata.normalize, "NFC")
    alike = _groups(symbols, composed)
    differ = [(group, "how Unicode composes them, and look the same") for group in alike]
    once = set(symbols) - {symbol for group in alike for symbol in group[1:]}
    differ += [(group, "case") for group in _groups(once, lambda symbol: composed(symbol).lower())]
    return [f"{', '.join(map(_spelt, group))} differ only in {what}" for group, what in differ]


def _groups(symbols: Iterable[str], fold: Callable[[str], str]) -> list[list[str]]:
    """The symbols that ``fold`` makes equal, where there are several."""
    groups = defaultdict(list)
    for symbol in sorted(symbols):
        groups[fold(symbol)].append(symbol)
    return [group for group in groups.values() if len(group) > 1]


def _spelt(symbol: str) -> str:
    return symbol if symbol.isascii() else f"{symbol} ({' '.join(f'U+{ord(char):04X}' for char in symbol)})"


def build(inventory: Inventory, paths: Sequence[str], base: str, folder: str, marks: bool) -> dict[str, int]:
    """Extend a tokenizer by the symbols of ``inventory``, check it on all rows, and let its folder land.

    Symbols and marks that the tokenizer has already keep their ids; the others follow in the order of their characters.
    The tokens are not special ones, since ``skip_special_tokens`` would lose them.

    Args:
        base: folder or hub name.
        folder: what is made; one that this function made before is replaced.
        marks: have the marks even if no row does.

    Returns:
        how often each phoneme of the tokenizer stands in the data, in the order of the ids.

    Raises:
        UserError: no such tokenizer, a folder with other files, or a row that does not come back as it was.
    """
    from transformers import AddedToken

    part = f"{os.path.normpath(folder)}.part"
    tokenizer = _open(find(base))
    known = Phonemes(tokenizer)
    new = [token(symbol) for symbol in sorted(set(inventory.counts) - set(known.ids))]
    new += MARKS if (marks or inventory.marked) and not known.marks else ()
    tokenizer.add_tokens([AddedToken(name, normalized=False, special=False) for name in new])
    extended = Phonemes(tokenizer)
    counts = {symbol: inventory.counts.get(symbol, 0) for symbol in extended.ids}
    if extended.marks and not inventory.marked:
        log.warning(
            "the tokenizer has %s and %s, so phonemes are learnt only between them; no row has them yet", *MARKS
        )
    elif extended.marks and known.ids and not known.marks:
        log.warning("%s and %s are new: what rows have outside of them was phonemes, and is text from now on", *MARKS)
    shutil.rmtree(part, ignore_errors=True)
    try:
        tokenizer.save_pretrained(part)
        with atomic_write(os.path.join(part, TABLE)) as file:
            file.writelines(f"{symbol}\t{count}\n" for symbol, count in counts.items())
        verify(part, paths, inventory)
        _land(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return counts


def _open(folder: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no tokenizer that transformers reads; give the LLM's folder ({error})") from error


def verify(folder: str, paths: Sequence[str], inventory: Inventory) -> None:
    """Open the tokenizer and take every symbol and every answer there and back.

    Raises:
        UserError: a symbol that is not one token, an answer that does not come back, or one that lacks its marks.
    """
    tokenizer = _open(folder)
    phonemes = Phonemes(tokenizer)
    for symbol, i in phonemes.ids.items():
        if tokenizer.encode(token(symbol), add_special_tokens=False) != [i]:
            raise UserError(f"{symbol}: the tokenizer does not keep it whole; take another ++base_tokenizer")
    numbers = set(phonemes.ids.values())
    for where, answer in answers(paths):
        if phonemes.marks and not inventory.marked:  # such rows are to get their marks
            answer = f"{MARKS[0]} {answer} {MARKS[1]}"
        bare = bool(phonemes.marks) and MARKS[0] not in answer
        if bare and len(answer.split()) > 1 and set(answer.split()) <= phonemes.ids.keys():
            raise UserError(
                f"{where}: phonemes without {' and '.join(MARKS)}, which other rows have, so they would be learnt as "
                "text; put them between marks"
            )
        expected = 0 if bare else sum(map(len, stretches(answer)))
        ids = phonemes.encode(answer)
        back, found = phonemes.decode(ids), sum(i in numbers for i in ids)
        spaced = re.sub("|".join(MARKS), r" \g<0> ", answer)
        if back.split() != spaced.split() or found != expected:
            raise UserError(f"{where}: {answer!r} comes back as {back!r}, in {found} phonemes; correct the row")


def _land(part: str, folder: str) -> None:
    """Put the finished folder in its place, that of an earlier one included."""
    old = f"{os.path.normpath(folder)}.old"
    shutil.rmtree(old, ignore_errors=True)
    if os.path.isdir(folder):
        if others := sorted(set(os.listdir(folder)) - set(os.listdir(part))):
            raise UserError(f"{folder}: holds {others[0]}, which is no part of a tokenizer; give another ++save_dir")
        os.replace(folder, old)
    os.replace(part, folder)
    shutil.rmtree(old, ignore_errors=True)
