"""Kaldi's tables: ``id value`` per line, in UTF-8, sorted by id in C locale order.

A table is read whole, {id: (value, where)} in the file's order; ``where`` is ``file:line``, for messages. What is
wrong with a line goes to ``on_fault(id, where, reason)``, and the line is left out; by default the first fault raises.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from math import isfinite
from typing import NamedTuple, TypeVar

from speechllm import audio
from speechllm.errors import UserError
from speechllm.files import atomic_write
from speechllm.formats.prompts import with_hotwords
from speechllm.sample import Clip, Prompt, Sample, speech_length

NO_VALUE = "nothing follows the id; add what is missing or remove the line"
AGAIN = "the id stands on line {line} already; rename or remove one of them"
BOM = b"\xef\xbb\xbf"  # some editors begin a UTF-8 file with it
Fault = Callable[[str, str, str], None]
Table = dict[str, tuple[str, str]]
T = TypeVar("T")


class Segment(NamedTuple):
    """A stretch of a recording, in seconds."""

    recording: str
    start: float
    end: float


def refuse(key: str, where: str, reason: str) -> None:
    raise UserError(f"{where}: {key}: {reason}")


def entries(path: str | os.PathLike) -> Iterator[tuple[int, str, str, str]]:
    """``(line number, id, value, fault)`` of each line that is not blank; the fault is empty where there is none.

    Raises:
        UserError: no such file.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file; give a Kaldi table, one `id value` per line")
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            if number == 1:
                raw = raw.removeprefix(BOM)
            # Only ASCII blanks part the id from its value: words may hold other spaces, such as U+3000.
            key, *rest = raw.split(None, 1) or [b""]
            if not key:
                continue
            try:
                value = rest[0].rstrip().decode() if rest else ""
                yield number, key.decode(), value, "" if value else NO_VALUE
            except UnicodeDecodeError:
                yield number, key.decode(errors="replace"), "", "not UTF-8; save the file in UTF-8"


def lines(path: str | os.PathLike, on_fault: Fault = refuse) -> Iterator[tuple[str, str, str]]:
    """``(id, value, where)`` of each line with a value; blank lines are passed over.

    Faults: an id that stands twice (the first stays), no value, not UTF-8.

    Raises:
        UserError: no such file.
    """
    seen: dict[str, int] = {}
    for number, key, value, fault in entries(path):
        where = f"{os.fspath(path)}:{number}"
        if key in seen:
            on_fault(key, where, AGAIN.format(line=seen[key]))
            continue
        seen[key] = number
        if fault:
            on_fault(key, where, fault)
        else:
            yield key, value, where


def read_table(path: str | os.PathLike, on_fault: Fault = refuse) -> Table:
    """Any table, such as ``wav.scp`` (id and path, URL, ``ark:offset`` or pipe) and ``text`` (id and words)."""
    return {key: (value, where) for key, value, where in lines(path, on_fault)}


def read_text(path: str | os.PathLike) -> dict[str, str]:
    """The words of each utterance."""
    return {key: value for key, value, _ in lines(path)}


def speaker(value: str) -> str:
    """The value of a line of ``utt2spk``. Raises ValueError: it is not one word."""
    if len(value.split()) != 1:
        raise ValueError(f"one speaker expected, found {value!r}; write `utterance speaker`")
    return value


def segment(value: str) -> Segment:
    """The value of a line of ``segments``, ``recording start end`` in seconds. Raises ValueError: it is not that."""
    try:
        recording, *times = value.split()
        start, end = map(float, times)
        if not (0 <= start < end and isfinite(end)):
            raise ValueError
        return Segment(recording, start, end)
    except ValueError:
        raise ValueError(f"`utterance recording start end` with 0 <= start < end expected, found {value!r}") from None


def hotwords(value: str) -> list[str]:
    """The value of a line of ``hotwords``, words parted by ``,`` or ``，``. Raises ValueError: there is none."""
    words = [word.strip() for word in re.split("[,，]", value)]
    if not any(words):
        raise ValueError(f"`utterance word,word ...` expected, found {value!r}")
    return [word for word in words if word]


def _read(path: str | os.PathLike, parse: Callable[[str], T], on_fault: Fault) -> dict[str, tuple[T, str]]:
    table = {}
    for key, value, where in lines(path, on_fault):
        try:
            table[key] = (parse(value), where)
        except ValueError as error:
            on_fault(key, where, str(error))
    return table


def read_utt2spk(path: str | os.PathLike, on_fault: Fault = refuse) -> Table:
    """The speaker of each utterance, one word."""
    return _read(path, speaker, on_fault)


def read_segments(path: str | os.PathLike, on_fault: Fault = refuse) -> dict[str, tuple[Segment, str]]:
    """The stretch of each utterance, ``utterance recording start end`` with times in seconds."""
    return _read(path, segment, on_fault)


def read_hotwords(path: str | os.PathLike, on_fault: Fault = refuse) -> dict[str, list[str]]:
    """The hotwords of each utterance, ``utterance word,word ...``; ``，`` serves as well, and words may hold blanks."""
    return {key: words for key, (words, _) in _read(path, hotwords, on_fault).items()}


def clips(
    recordings: Table, segments: Mapping[str, tuple[Segment, str]] | None = None, on_fault: Fault = refuse
) -> dict[str, tuple[Clip, str]]:
    """The audio of each utterance, in the order of ``segments``, or of ``wav.scp`` where there are none."""
    if segments is None:
        return {key: (Clip(source), where) for key, (source, where) in recordings.items()}
    joined = {}
    for key, (segment, where) in segments.items():
        if segment.recording in recordings:
            joined[key] = (Clip(recordings[segment.recording][0], segment.start, segment.end), where)
        else:
            on_fault(key, where, f"recording {segment.recording} is not in wav.scp; add it there or remove the segment")
    return joined


def samples(
    scp: str | os.PathLike,
    segments: str | os.PathLike | None = None,
    prompt: Prompt | None = None,
    allow_pipes: bool = False,
    hotwords: Mapping[str, list[str]] | None = None,
) -> list[Sample]:
    """Utterances to decode, one per line of ``wav.scp`` or ``segments``, with lengths from the headers.

    One whose audio cannot be used keeps its place with ``speech_length`` 0: reading its audio says why.

    Raises:
        UserError: a fault in the tables, or hotwords of what is no utterance.
    """
    found = clips(read_table(scp), None if segments is None else read_segments(segments))
    prompt, hotwords = prompt or Prompt(), hotwords or {}
    if unknown := [key for key in hotwords if key not in found]:
        raise UserError(
            f"hotwords of {unknown[0]}: {segments or scp} does not have it; correct the id or remove the line"
        )
    seconds = audio.durations((clip for clip, _ in found.values()), allow_pipes=allow_pipes)
    lengths = [0 if isinstance(length, audio.AudioError) else speech_length(length) for length in seconds]
    prompts = {key: with_hotwords(prompt, words) for key, words in hotwords.items()}
    return [
        Sample(key, clip, prompts.get(key, prompt), None, length, 0, where)
        for (key, (clip, where)), length in zip(found.items(), lengths, strict=True)
    ]


def write_table(path: str | os.PathLike, rows: Mapping[str, str]) -> None:
    """Write a table atomically, sorted by id in C locale order (of bytes, which in UTF-8 is that of code points).

    Raises:
        UserError: an id that is not one word, or a value that is not one line of text.
    """
    with atomic_write(path) as file:
        for key, value in sorted(rows.items()):
            if key.split() != [key] or value.strip() == "" or "\n" in value:
                raise UserError(f"{path}: {key!r} with {value!r} is not a row; an id is one word, its value one line")
            file.write(f"{key} {value}\n")
