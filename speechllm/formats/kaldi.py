"""Kaldi's tables: ``id value`` per line, in UTF-8, sorted by id in C locale order.

A table is read whole, {id: (value, where)} in the file's order; ``where`` is ``file:line``, for messages. What is
wrong with a line goes to ``on_fault(id, where, reason)``, and the line is left out; by default the first fault raises.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from math import isfinite
from typing import NamedTuple

from speechllm import audio
from speechllm.errors import UserError
from speechllm.files import atomic_write
from speechllm.sample import Clip, Prompt, Sample, speech_length

BLANKS = re.compile(rb"[ \t]+")
BOM = b"\xef\xbb\xbf"  # some editors begin a UTF-8 file with it
Fault = Callable[[str, str, str], None]
Table = dict[str, tuple[str, str]]


class Segment(NamedTuple):
    """A stretch of a recording, in seconds."""

    recording: str
    start: float
    end: float


def refuse(key: str, where: str, reason: str) -> None:
    raise UserError(f"{where}: {key}: {reason}")


def lines(path: str | os.PathLike, on_fault: Fault = refuse) -> Iterator[tuple[str, str, str]]:
    """``(id, value, where)`` of each line with a value; blank lines are passed over.

    Faults: an id that stands twice (the first stays), no value, not UTF-8.

    Raises:
        UserError: no such file.
    """
    path = os.fspath(path)
    seen: dict[str, int] = {}
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file; give a Kaldi table, one `id value` per line")
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            where = f"{path}:{number}"
            # Only blanks and tabs part the id from its value: words may hold other spaces, such as U+3000.
            key, *rest = BLANKS.split(raw.removeprefix(BOM).strip(b" \t\r\n"), maxsplit=1)
            try:
                key, value = key.decode(), b"".join(rest).decode()
            except UnicodeDecodeError:
                on_fault(key.decode(errors="replace"), where, "not UTF-8; save the file in UTF-8")
                continue
            if key in seen:
                on_fault(key, where, f"the id stands on line {seen[key]} already; rename or remove one of them")
            elif key and not value:
                on_fault(key, where, "nothing follows the id; add what is missing or remove the line")
            elif key:
                yield key, value, where
            if key:
                seen.setdefault(key, number)


def read_table(path: str | os.PathLike, on_fault: Fault = refuse) -> Table:
    """Any table, such as ``wav.scp`` (id and path, URL, ``ark:offset`` or pipe) and ``text`` (id and words)."""
    return {key: (value, where) for key, value, where in lines(path, on_fault)}


def read_text(path: str | os.PathLike) -> dict[str, str]:
    """The words of each utterance."""
    return {key: value for key, value, _ in lines(path)}


def read_utt2spk(path: str | os.PathLike, on_fault: Fault = refuse) -> Table:
    """The speaker of each utterance, one word."""
    table: Table = {}
    for key, value, where in lines(path, on_fault):
        if len(value.split()) == 1:
            table[key] = (value, where)
        else:
            on_fault(key, where, f"one speaker expected, found {value!r}; write `utterance speaker`")
    return table


def read_segments(path: str | os.PathLike, on_fault: Fault = refuse) -> dict[str, tuple[Segment, str]]:
    """The stretch of each utterance, ``utterance recording start end`` with times in seconds."""
    table = {}
    for key, value, where in lines(path, on_fault):
        try:
            recording, *times = value.split()
            start, end = map(float, times)
            if not (0 <= start < end and isfinite(end)):
                raise ValueError
            table[key] = (Segment(recording, start, end), where)
        except ValueError:
            on_fault(key, where, f"`utterance recording start end` with 0 <= start < end expected, found {value!r}")
    return table


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
) -> list[Sample]:
    """Utterances to decode, one per line of ``wav.scp`` or ``segments``, with lengths from the headers.

    One whose audio cannot be used keeps its place with ``speech_length`` 0: reading its audio says why.

    Raises:
        UserError: a fault in the tables.
    """
    found = clips(read_table(scp), None if segments is None else read_segments(segments))
    seconds = audio.durations((clip for clip, _ in found.values()), allow_pipes=allow_pipes)
    lengths = [0 if isinstance(length, audio.AudioError) else speech_length(length) for length in seconds]
    return [
        Sample(key, clip, prompt or Prompt(), None, length, 0, where)
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
