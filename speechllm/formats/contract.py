"""The Kaldi contract of a data folder: every utterance has audio that can be used, words, and a speaker if any has.

``wav.scp`` and ``text`` must be there; ``segments``, ``utt2spk`` and ``hotwords`` may be. scp2jsonl, validate_data and
fix_data judge by the same rules, here. Faults go to ``on_fault(id, where, reason)`` as in formats/kaldi.py.
"""

from __future__ import annotations

import filecmp
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from speechllm import audio
from speechllm.formats import kaldi
from speechllm.formats.index import Index, Line, Utterance
from speechllm.formats.kaldi import Fault
from speechllm.processes import WORKERS, batched, ordered

TABLES = ("wav.scp", "segments", "text", "utt2spk", "hotwords")
PARSERS = {"segments": kaldi.segment, "utt2spk": kaldi.speaker, "hotwords": kaldi.hotwords}


def noting(on_fault: Fault) -> tuple[Fault, set[str]]:
    """``on_fault``, and the ids that came to it: one fault is enough for what follows from it."""
    known: set[str] = set()

    def note(key: str, where: str, reason: str) -> None:
        known.add(key)
        on_fault(key, where, reason)

    return note, known


class Aligned:
    """The utterances of a ``wav.scp`` and a ``text`` with the same ids, sorted, line by line: the common case."""

    def __init__(self, scp: str, text: str):
        self._scp, self._text = scp, text
        self._rows = 0  # or none, where the tables are not so, or have a fault
        last, ended, rows = "", (0, "", "", "ended"), 0
        for one, other in itertools.zip_longest(kaldi.entries(scp), kaldi.entries(text), fillvalue=ended):
            (_, key, _, fault), (_, other_key, _, other_fault) = one, other
            if fault or other_fault or key != other_key or key <= last:
                return
            last, rows = key, rows + 1
        self._rows = rows

    def __len__(self) -> int:
        return self._rows

    def __iter__(self) -> Iterator[Utterance]:
        lines = zip(kaldi.entries(self._scp), kaldi.entries(self._text), strict=True)
        for (number, key, source, _), (_, _, words, _) in lines:
            yield Utterance(key, source, 0.0, None, words, f"{self._scp}:{number}")


def join(
    scp: str, text: str, segments: str = "", utt2spk: str = "", hotwords: str = "", on_fault: Fault = kaldi.refuse
) -> Aligned | Index:
    """The utterances that have both audio and words, in the order of ``segments`` or, without it, of ``scp``.

    Faults: those of the tables, audio without text, text without audio, a recording that no segment uses, an utterance
    without speaker where others have one, and speakers or hotwords of what is no utterance.
    """
    if not (segments or utt2spk or hotwords) and (aligned := Aligned(scp, text)):
        return aligned
    on_fault, known = noting(on_fault)
    index, listed = Index(), segments or scp
    _load(index, "scp", scp, on_fault)
    if segments:
        _load(index, "segments", segments, on_fault)
    _load(index, "text", text, on_fault)
    index.join("segments" if segments else "scp")
    if segments:
        for key, where, recording in index.lacking("segments", "scp", "value", "key"):
            on_fault(key, where, f"recording {recording} is not in wav.scp; add it there or remove the segment")
    no_audio = f"text without audio: {listed} does not have it; add it there or remove the line"
    no_text = f"audio without text: {text} does not have it; add it there or remove the line"
    match(index, no_audio, no_text, hotwords, on_fault, known)
    if segments:
        for key, where, _ in index.lacking("scp", "segments", "key", "value"):
            on_fault(key, where, f"{segments} has nothing of this recording; add it there or remove the line")
    if utt2spk:
        _load(index, "utt2spk", utt2spk, on_fault)
        lack = "speaker of an utterance without audio and text; remove the line"
        _tell(index.lacking("utt2spk", "utterances"), lack, on_fault, known)
        lack = f"no speaker: {utt2spk} does not have it; add it there"
        _tell(index.lacking("utterances", "utt2spk"), lack, on_fault, known)
    return index


def match(index: Index, no_audio: str, no_text: str, hotwords: str, on_fault: Fault, known: Collection[str]) -> None:
    """Report what has no counterpart: text, audio and, if there are any, hotwords. Ids in ``known`` are spared."""
    _tell(index.lacking("text", "clips"), no_audio, on_fault, known)
    _tell(index.lacking("clips", "text"), no_text, on_fault, known)
    if hotwords:
        _load(index, "hotwords", hotwords, on_fault)
        lack = "hotwords of an utterance without audio and text; correct the id or remove the line"
        _tell(index.lacking("hotwords", "utterances"), lack, on_fault, known)


def _tell(lines: Iterable[tuple[str, str, str]], reason: str, on_fault: Fault, known: Collection[str]) -> None:
    for key, where, _ in lines:
        if key not in known:
            on_fault(key, where, reason)


def _load(index: Index, name: str, path: str, on_fault: Fault) -> None:
    index.load(name, _lines(path, PARSERS.get(name, str)))
    index.finish(name, kaldi.AGAIN, on_fault)


def _lines(path: str, parse: Callable[[str], Any]) -> Iterator[Line]:
    """The lines of a table for an Index, their values checked."""
    for number, key, value, fault in kaldi.entries(path):
        line = Line(key, value, f"{path}:{number}", fault)
        try:
            parsed = line.value if fault else parse(value)
        except ValueError as error:
            line = line._replace(fault=str(error))
        else:
            if isinstance(parsed, kaldi.Segment):
                line = line._replace(value=parsed.recording, start=parsed.start, stop=parsed.end)
        yield line


def check(
    folder: str | os.PathLike,
    max_workers: int = WORKERS,
    allow_pipes: bool = False,
    decode: bool = False,
    on_fault: Fault = kaldi.refuse,
) -> Iterator[tuple[str, float, str]]:
    """Check a data folder, but for the order of its lines.

    Yields:
        ``(id, seconds, speaker)`` of each utterance without a fault; the speaker is empty without ``utt2spk``.
    """
    scp, segments, text, utt2spk, hotwords = (os.path.join(folder, name) for name in TABLES)
    segments, utt2spk, hotwords = (path if os.path.exists(path) else "" for path in (segments, utt2spk, hotwords))
    joined = join(scp, text, segments, utt2spk, hotwords, on_fault)
    utterances = (utterance for utterance in joined if utterance.speaker or not utt2spk)

    def measure(block: list[Utterance]) -> list[float | audio.AudioError]:
        return audio.measure([utterance.clip for utterance in block], allow_pipes, decode)

    for block, lengths in ordered(measure, batched(utterances, audio.BLOCK), max_workers):
        for utterance, length in zip(block, lengths, strict=True):
            if isinstance(length, audio.AudioError):
                on_fault(utterance.key, utterance.where, str(length))
            else:
                yield utterance.key, length, utterance.speaker


def check_order(folder: str | os.PathLike, on_fault: Fault = kaldi.refuse) -> None:
    """Report the first line of each table that stands before its place in C locale order."""
    for name, path in _tables(folder).items():
        last = ""
        for key, _, where in kaldi.lines(path, _ignore):
            if key < last:
                on_fault(key, where, f"{name} is not sorted: {last} stands before it; sort with tools/fix_data.py")
                break
            last = key


def fix(folder: str | os.PathLike, keep: Collection[str]) -> bool:
    """Sort the tables and drop what is not of these utterances; False where that changes nothing.

    The tables as they were go to ``.backup`` in the folder. Each new one lands whole, and after an interruption
    another fix completes the work.
    """
    tables = _tables(folder)
    rows = {name: {key: value for key, value, _ in kaldi.lines(path, _ignore)} for name, path in tables.items()}
    kept = dict.fromkeys(rows, keep)
    if "segments" in rows:
        kept["wav.scp"] = {value.split()[0] for key, value in rows["segments"].items() if key in keep}
    if "hotwords" in rows:
        kept["hotwords"] = kaldi.read_hotwords(tables["hotwords"], _ignore).keys() & set(keep)
    with tempfile.TemporaryDirectory(prefix=".fix", dir=folder) as made:
        for name, table in rows.items():
            kaldi.write_table(os.path.join(made, name), {key: table[key] for key in table if key in kept[name]})
        if not filecmp.cmpfiles(folder, made, rows, shallow=False)[1]:
            return False
        os.makedirs(os.path.join(folder, ".backup"), exist_ok=True)
        for name, path in tables.items():
            shutil.copy2(path, os.path.join(folder, ".backup", name))
        for name, path in tables.items():
            os.replace(os.path.join(made, name), path)
    return True


def _tables(folder: str | os.PathLike) -> dict[str, str]:
    paths = {name: os.path.join(folder, name) for name in TABLES}
    return {name: path for name, path in paths.items() if os.path.exists(path)}


def _ignore(key: str, where: str, reason: str) -> None:
    """For a second reading, whose faults the first has reported."""
