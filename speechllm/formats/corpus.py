"""What the recipes' prepare scripts share: from the files of a corpus to data folders in Kaldi's form."""

from __future__ import annotations

import logging
import os
import shutil
import wave
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from speechllm.errors import Rejects, UserError
from speechllm.files import atomic_write
from speechllm.formats.kaldi import Table, write_table
from speechllm.formats.times import ctm
from speechllm.formats.times.word import Word

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger("speechllm")

Spans = Mapping[str, Iterable[tuple[str, float, float]]]
"""By utterance: (label, start, end), in seconds."""


class Recording(NamedTuple):
    """The audio of one utterance, in a corpus that has a file for each."""

    path: Path
    speaker: str


class Utterance(NamedTuple):
    recording: Recording
    text: str


def collect(recordings: dict[str, Recording], paths: Iterable[Path], speaker_depth: int) -> None:
    """Add audio files to ``recordings``: the id is the file's name, the speaker a folder above it.

    Args:
        speaker_depth: which folder above the file is the speaker's; 0 is the one that holds the file.

    Raises:
        UserError: two files of one name.
    """
    for path in sorted(paths):
        key = path.stem
        if key in recordings:
            raise UserError(f"{path}: {recordings[key].path} has that name too; give a folder with the corpus once")
        recordings[key] = Recording(path.absolute(), path.parents[speaker_depth].name)


def pair(recordings: Mapping[str, Recording], texts: Table, rejects: Rejects) -> dict[str, Utterance]:
    """The utterances that have both audio and text; every other one goes to ``rejects``, unless it is there already."""
    known = {key for key, _, _ in rejects.rows}
    for key in sorted(recordings.keys() - texts.keys() - known):
        rejects.add(key, str(recordings[key].path), "audio without transcript")
    for key in sorted(texts.keys() - recordings.keys() - known):
        rejects.add(key, texts[key][1], "transcript without audio")
    return {key: Utterance(one, texts[key][0]) for key, one in recordings.items() if key in texts}


def check_count(name: str, found: int, expected: int) -> None:
    """Say so where a part of a corpus is not whole, which may be what the user wants."""
    if found != expected:
        log.warning("%s: %d utterances; the whole corpus has %d", name, found, expected)


def spread(utterances: Mapping[str, Utterance], count: int) -> dict[str, Utterance]:
    """``count`` of the utterances, or all if there are fewer, evenly spread over the sorted ids, so over speakers."""
    keys = sorted(utterances)
    count = min(count, len(keys))
    return {key: utterances[key] for key in (keys[index * len(keys) // count] for index in range(count))}


def publish_utterances(output: Path, name: str, utterances: Mapping[str, Utterance]) -> None:
    """Write ``wav.scp`` (absolute paths), ``text`` and ``utt2spk`` of a set.

    Raises:
        UserError: there is no utterance.
    """
    if not utterances:
        raise UserError(f"{name}: no utterance with audio and transcript; give the folder of the whole corpus")
    tables = {
        "text": {key: one.text for key, one in utterances.items()},
        "utt2spk": {key: one.recording.speaker for key, one in utterances.items()},
        "wav.scp": {key: str(one.recording.path) for key, one in utterances.items()},
    }
    publish(output / name, tables)
    log.info("%s: %d utterances, %d speakers", output / name, len(utterances), len(set(tables["utt2spk"].values())))


def publish(folder: Path, tables: Mapping[str, Mapping[str, str]], ctms: Mapping[str, Spans] | None = None) -> None:
    """Write the tables of a set, by file name. ``wav.scp`` goes first and comes last: after a kill, it never lies."""
    (folder / "wav.scp").unlink(missing_ok=True)
    for name, spans in (ctms or {}).items():
        write_ctm(folder / name, spans)
    for name in sorted(tables, key="wav.scp".__eq__):
        write_table(folder / name, tables[name])


def move_wavs(output: Path, partial: Path, name: str) -> Path:
    """Put the audio of a set that was made in ``partial`` in its place, ``<output>/wavs/<name>``, which is returned.

    The set's ``wav.scp`` goes, for it speaks of the audio before; :func:`publish` writes the new one.
    """
    (output / name / "wav.scp").unlink(missing_ok=True)
    wavs = output / "wavs" / name
    shutil.rmtree(wavs, ignore_errors=True)
    wavs.parent.mkdir(parents=True, exist_ok=True)
    partial.rename(wavs)
    return wavs


def write_ctm(path: Path, spans: Spans) -> None:
    """``utt 1 start duration label`` per line, in seconds; the durations are those between the rounded times."""
    with atomic_write(path) as file:
        for key in sorted(spans):
            for label, start, end in spans[key]:
                file.write(ctm.line(key, Word(label, start, end)))


def write_wav(path: str | os.PathLike, samples: np.ndarray, rate: int) -> None:
    """A mono wav of 16 bits from (N,) samples, whole numbers in the range of int16."""
    with wave.open(str(path), "wb") as file:  # soundfile would wait for the disk after each
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(samples.astype("<i2").tobytes())
