"""The Kaldi contract of a data folder: every utterance has audio that can be used, words, and a speaker if any has.

``wav.scp`` and ``text`` must be there; ``segments`` and ``utt2spk`` may be. scp2jsonl, validate_data and fix_data
judge by the same rules, here. Faults go to ``on_fault(id, where, reason)`` as in formats/kaldi.py.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from speechllm import audio
from speechllm.formats import kaldi
from speechllm.formats.kaldi import Fault
from speechllm.sample import Clip

TABLES = ("wav.scp", "segments", "text", "utt2spk")


class Utterance(NamedTuple):
    """One utterance that has both audio and words."""

    key: str
    clip: Clip
    text: str
    where: str


def _noting(on_fault: Fault) -> tuple[Fault, set[str]]:
    """``on_fault``, and the ids that came to it: one fault is enough for what follows from it."""
    known: set[str] = set()

    def note(key: str, where: str, reason: str) -> None:
        known.add(key)
        on_fault(key, where, reason)

    return note, known


def join(scp: str, text: str, segments: str = "", on_fault: Fault = kaldi.refuse) -> list[Utterance]:
    """The utterances that have both audio and words, in the order of ``segments`` or, without it, of ``scp``.

    Faults: those of the tables, audio without text, text without audio, a recording that no segment uses.
    """
    on_fault, known = _noting(on_fault)
    recordings = kaldi.read_table(scp, on_fault)
    parts = kaldi.read_segments(segments, on_fault) if segments else None
    words = kaldi.read_table(text, on_fault)
    clips = kaldi.clips(recordings, parts, on_fault)
    listed = segments or scp
    for key, (_, where) in words.items():
        if key not in clips and key not in known:
            on_fault(key, where, f"text without audio: {listed} does not have it; add it there or remove the line")
    for key, (_, where) in clips.items():
        if key not in words and key not in known:
            on_fault(key, where, f"audio without text: {text} does not have it; add it there or remove the line")
    if parts is not None:
        used = {segment.recording for segment, _ in parts.values()}
        for key, (_, where) in recordings.items():
            if key not in used:
                on_fault(key, where, f"{segments} has nothing of this recording; add it there or remove the line")
    return [Utterance(key, clip, words[key][0], where) for key, (clip, where) in clips.items() if key in words]


def measured(
    utterances: Sequence[Utterance],
    max_workers: int = 4,
    allow_pipes: bool = False,
    decode: bool = False,
    on_fault: Fault = kaldi.refuse,
) -> Iterator[tuple[Utterance, float]]:
    """Each utterance with its seconds, in order, but for those whose audio cannot be used.

    Args: as of :func:`speechllm.audio.durations`.
    """
    lengths = audio.durations((utterance.clip for utterance in utterances), max_workers, allow_pipes, decode)
    for utterance, length in zip(utterances, lengths, strict=True):
        if isinstance(length, audio.AudioError):
            on_fault(utterance.key, utterance.where, str(length))
        else:
            yield utterance, length


def check(
    folder: str | os.PathLike,
    max_workers: int = 4,
    allow_pipes: bool = False,
    decode: bool = False,
    on_fault: Fault = kaldi.refuse,
) -> Iterator[tuple[str, float, str]]:
    """Check a data folder, but for the order of its lines.

    Yields:
        ``(id, seconds, speaker)`` of each utterance without a fault; the speaker is empty without ``utt2spk``.
    """
    scp, segments, text, utt2spk = (os.path.join(folder, name) for name in TABLES)
    on_fault, known = _noting(on_fault)
    utterances = join(scp, text, segments if os.path.exists(segments) else "", on_fault)
    speakers = {utterance.key: ("", "") for utterance in utterances}
    if os.path.exists(utt2spk):
        nameless, speakers = speakers, kaldi.read_utt2spk(utt2spk, on_fault)
        for key, (_, where) in speakers.items():
            if key not in nameless and key not in known:
                on_fault(key, where, "speaker of an utterance without audio and text; remove the line")
        for utterance in utterances:
            if utterance.key not in speakers and utterance.key not in known:
                on_fault(utterance.key, utterance.where, f"no speaker: {utt2spk} does not have it; add it there")
        utterances = [utterance for utterance in utterances if utterance.key in speakers]
    for utterance, length in measured(utterances, max_workers, allow_pipes, decode, on_fault):
        yield utterance.key, length, speakers[utterance.key][0]


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
