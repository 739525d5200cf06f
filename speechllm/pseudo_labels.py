"""A set aligned by a model, as files of times that can be trained on, looked at, or given to other tools."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from speechllm import audio
from speechllm.config import DecodeOptions
from speechllm.decode import decode_set, fingerprint
from speechllm.errors import Rejects, UserError
from speechllm.files import atomic_write, write_json
from speechllm.formats import kaldi
from speechllm.formats.aligner import to_row
from speechllm.formats.jsonl import JsonlFile
from speechllm.formats.kaldi import Fault
from speechllm.formats.times import ctm, srt, textgrid
from speechllm.formats.times.word import Word
from speechllm.models.base import Aligns
from speechllm.sample import Sample, Span

log = logging.getLogger("speechllm")
DONE = "done.json"  # beside hyp.jsonl: of what it was made
UNSAFE = re.compile(r'[\x00-\x1f\x7f%\\:*?"<>|]')  # in names of files, of one system or another
Add = Callable[[Sample, list[Word], float], None]


class Spoken(Sequence):
    """The samples of a JSONL or of tables, with a language where they tell none.

    Attributes:
        lengths: frames of 10 ms of each.
    """

    def __init__(self, samples: JsonlFile | list[Sample], language: str):
        self._samples, self._language = samples, language
        in_list = isinstance(samples, list)
        self.lengths = [sample.speech_length for sample in samples] if in_list else samples.speech_lengths

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        sample = self._samples[index]
        return sample if sample.language else replace(sample, language=self._language)


def from_tables(scp: str, transcript: str, segments: str, allow_pipes: bool, on_fault: Fault) -> list[Sample]:
    """The utterances of Kaldi's tables that have audio and text. Faults: one that lacks either."""
    texts = kaldi.read_table(transcript)
    samples = kaldi.samples(scp, segments or None, allow_pipes=allow_pipes)
    for sample in samples:
        if sample.key not in texts:
            on_fault(sample.key, sample.where, f"audio without text: {transcript} does not have it; add it there")
    for key in texts.keys() - {sample.key for sample in samples}:
        on_fault(key, texts[key][1], f"text without audio: {segments or scp} does not have it; add it there")
    return [replace(sample, text=texts[sample.key][0]) for sample in samples if sample.key in texts]


def formats_of(said: str | Sequence[str], zero_length: bool) -> list[str]:
    """The names of formats in a list, or in a text with commas. Raises UserError: there is no such format."""
    names = said.strip("[]").split(",") if isinstance(said, str) else list(said)
    names = list(dict.fromkeys(name.strip() for name in names))
    if unknown := [name for name in names if name not in WRITERS]:
        raise UserError(
            f"unknown format {unknown[0]!r}; ++formats takes {', '.join(WRITERS)}, with commas between them"
        )
    if zero_length and "textgrid" in names:
        raise UserError("a TextGrid has no word of zero length; leave out ++zero_length, or textgrid in ++formats")
    return names


def align(opened: Any, samples: Spoken, options: DecodeOptions, folder: str, device: str) -> str:
    """Align a set. One that the folder has already, from the same model and options, is left as it is.

    Args:
        opened: :class:`speechllm.checkpoint.Opened`.
        folder: takes what :func:`speechllm.decode.decode_set` writes, which goes on after a kill.
        device: of torch; empty: the first GPU, or the CPU.

    Returns:
        the path of hyp.jsonl.

    Raises:
        UserError: the model does not align.
    """
    import torch

    if opened.task.needs is not Aligns:
        raise UserError(
            f"{opened.folder}: a model of the task {opened.task.name}, which gives no times; give one that does, such "
            "as Qwen/Qwen3-ForcedAligner-0.6B"
        )
    made, done = os.path.join(folder, "hyp.jsonl"), os.path.join(folder, DONE)
    same = fingerprint(opened, samples, options)
    if _said(done) == same and os.path.isfile(made):
        log.info("%s: aligned already", made)
        return made
    with contextlib.suppress(FileNotFoundError):
        os.remove(done)
    opened.model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    decode_set(opened, samples, samples.lengths, options, os.path.join(folder, "hyp.txt"))
    write_json(done, same)
    return made


def _said(path: str) -> Any:
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (FileNotFoundError, ValueError):
        return None


def write(
    samples: Sequence[Sample],
    hypotheses: str,
    output_file: str,
    formats: Sequence[str],
    min_confidence: float,
    rejects: Rejects,
    allow_pipes: bool = False,
) -> None:
    """Write the times in each of the formats; all files land whole, when there are not too many bad utterances.

    Args:
        hypotheses: hyp.jsonl of these samples.
        output_file: of ``jsonl``; the others take its name with another ending.
        min_confidence: utterances whose words' confidence is less on average are left out, and listed with it in
            ``<output_file>.low``.
        rejects: takes the utterances that could not be aligned.

    Raises:
        UserError: too many bad utterances, or none that is left.
    """
    clips = (sample.clip for sample in samples)
    lengths = (
        audio.durations(clips, allow_pipes=allow_pipes)
        if "textgrid" in formats
        else itertools.repeat(0.0, len(samples))
    )
    kept, low = 0, {}
    with contextlib.ExitStack() as stack:
        rows = stack.enter_context(open(hypotheses, encoding="utf-8"))
        adds = [stack.enter_context(WRITERS[name](output_file)) for name in formats]
        for sample, row, seconds in zip(samples, map(json.loads, rows), lengths, strict=True):
            if "error" in row:
                rejects.add(sample.key, sample.where, row["error"])
                continue
            mean = sum(row["confidences"]) / len(row["confidences"])
            if mean < min_confidence:
                low[sample.key] = mean
                continue
            kept += 1
            words = [Word(*told) for told in _words(row)]
            for add in adds:
                add(sample, words, seconds)
        _tell(f"{output_file}.low", low, kept, min_confidence)
        rejects.close()
        if not kept:
            raise UserError(f"{output_file}: no utterance is left; see {rejects.path} and {output_file}.low")


def _words(row: Mapping) -> Iterator[tuple]:
    for text, times, confidence in zip(row["words"], row["timestamps"], row["confidences"], strict=True):
        yield text, *times, confidence


def _tell(path: str, low: Mapping[str, float], kept: int, min_confidence: float) -> None:
    """List the utterances of low confidence, and say how many were kept."""
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)
    if low:
        with atomic_write(path) as file:
            file.writelines(f"{key}\t{mean:.4f}\n" for key, mean in low.items())
    count = kept + len(low)
    share = 100 * kept / max(count, 1)
    rule = f", those with a mean confidence of {min_confidence:g} or more; the others are in {path}" if low else ""
    log.info("kept %d of %d aligned utterances (%.1f%%)%s", kept, count, share, rule)


@contextlib.contextmanager
def _jsonl(output_file: str) -> Iterator[Add]:
    with atomic_write(output_file) as file:

        def add(sample: Sample, words: list[Word], seconds: float) -> None:
            timed = replace(sample, spans=tuple(Span(word.start, word.end) for word in words))
            row = to_row(timed, [round(word.confidence, 4) for word in words])
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

        yield add


@contextlib.contextmanager
def _ctm(output_file: str) -> Iterator[Add]:
    with atomic_write(f"{os.path.splitext(output_file)[0]}.ctm") as file:
        yield lambda sample, words, seconds: file.writelines(ctm.line(sample.key, word) for word in words)


@contextlib.contextmanager
def _textgrid(output_file: str) -> Iterator[Add]:
    with _folder(f"{os.path.splitext(output_file)[0]}_textgrid") as folder:
        yield lambda sample, words, seconds: textgrid.write(
            os.path.join(folder, f"{file_name(sample.key)}.TextGrid"), words, seconds
        )


@contextlib.contextmanager
def _srt(output_file: str) -> Iterator[Add]:
    with _folder(f"{os.path.splitext(output_file)[0]}_srt") as folder:
        yield lambda sample, words, seconds: srt.write(os.path.join(folder, f"{file_name(sample.key)}.srt"), words)


WRITERS = {"jsonl": _jsonl, "textgrid": _textgrid, "ctm": _ctm, "srt": _srt}


@contextlib.contextmanager
def _folder(path: str) -> Iterator[str]:
    """A new folder, which takes the name when all is in it, in place of an earlier one."""
    part = f"{path}.part"
    shutil.rmtree(part, ignore_errors=True)
    os.makedirs(part)
    try:
        yield part
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    shutil.rmtree(path, ignore_errors=True)
    os.replace(part, path)


def file_name(key: str) -> str:
    """A path below the folder that it is joined to, another for every id.

    ``/`` parts folders, as in the ids of tools/prepare_aligner_data.py; what no name of a file should hold is written
    as ``%`` and its code.
    """
    parts = [UNSAFE.sub(lambda found: f"%{ord(found[0]):02X}", part) for part in key.split("/")]
    return os.path.join(*(part.replace(".", "%2E") if set(part) <= {"."} and part else part or "%" for part in parts))
