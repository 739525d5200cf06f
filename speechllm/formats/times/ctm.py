"""NIST's CTM: ``utt channel start duration word [confidence]`` per line, in seconds; ``;;`` begins a comment.

A file may hold many utterances. What is noted of it is where each one's lines stand, and they are read when they are
needed, so memory does not grow with the words.
"""

from __future__ import annotations

from math import isfinite
from typing import NamedTuple

from speechllm.errors import UserError
from speechllm.formats.kaldi import Fault, refuse
from speechllm.formats.times.word import Word, is_pause

COMMENT = b";;"


class Place(NamedTuple):
    """Where the lines of an utterance stand: their first byte, how many bytes, and the first one's number."""

    offset: int
    size: int
    line: int


def places(path: str, on_fault: Fault = refuse) -> dict[str, Place]:
    """Where each utterance stands. Faults: one whose lines do not stand together, which is left out."""
    found: dict[str, Place] = {}
    apart: set[str] = set()
    last, offset = "", 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if (words := line.split(None, 1)) and not line.lstrip().startswith(COMMENT):
                key = words[0].decode(errors="replace")
                first = found.setdefault(key, Place(offset, 0, number))
                if first.line != number and key != last and key not in apart:
                    apart.add(key)
                    on_fault(
                        key, f"{path}:{number}", f"its lines begin at line {first.line}; sort the file by utterance"
                    )
                found[key] = first._replace(size=offset + len(line) - first.offset)
                last = key
            offset += len(line)
    return {key: place for key, place in found.items() if key not in apart}


def read(path: str, place: Place | None = None) -> list[Word]:
    """The words of one utterance; of the file's only one, where no place is given.

    Raises:
        UserError: a line that is not of the form above, or several utterances, or channels.
    """
    if place is None:
        found = places(path)
        if len(found) != 1:
            raise UserError(f"{path}: {len(found)} utterances, one expected; give a file of many by ++ctm_file")
        (place,) = found.values()
    with open(path, "rb") as file:
        file.seek(place.offset)
        lines = file.read(place.size).splitlines()
    words, channels = [], set()
    for number, line in enumerate(lines, place.line):
        if line.strip() and not line.lstrip().startswith(COMMENT):
            channel, word = _parse(line, f"{path}:{number}")
            words.append(word)
            channels.add(channel)
    if len(channels) > 1:
        raise UserError(f"{path}:{place.line}: {len(channels)} channels in one utterance; give each its own id")
    return [word for word in words if not is_pause(word.text)]


def _parse(line: bytes, where: str) -> tuple[str, Word]:
    try:
        _, channel, start, length, word, *rest = line.decode().split()
        begin, end = float(start), round(float(start) + float(length), 6)
        if len(rest) > 2 or not 0 <= begin <= end or not isfinite(end):
            raise ValueError
        return channel, Word(word, begin, end)
    except ValueError:
        raise UserError(
            f"{where}: `utterance channel start duration word [confidence]` in seconds expected, found "
            f"{line.decode(errors='replace').strip()!r}; mend the line"
        ) from None


def line(key: str, word: Word) -> str:
    """One line; the duration is that between the rounded times."""
    length = round(word.end, 6) - round(word.start, 6)
    sure = "" if word.confidence is None else f" {word.confidence:.4f}"
    return f"{key} 1 {word.start:.6f} {length:.6f} {word.text}{sure}\n"
