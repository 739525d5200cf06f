"""JSONL of forced alignment: ``{"audio_path", "text", "timestamps": [[start_s, end_s], ...]}``, a pair per word.

That is what Qwen3-ForcedAligner's users have. Ours may also hold ``key``, ``language``, ``start`` and ``end`` of the
utterance in its recording, ``speech_length`` and ``confidences``; the times count from the utterance's start. Where the
times are not known, ``timestamps`` is empty or left out.
"""

from __future__ import annotations

import math
from itertools import chain, pairwise

from speechllm import audio
from speechllm.errors import UserError
from speechllm.sample import Clip, Prompt, Sample, Span, speech_length

ROUNDED = 0.002  # s that a word may start before its neighbour ends, as times are rounded
SLACK = 0.05  # s that a word may end after the audio, as times and lengths are rounded


def to_row(sample: Sample, confidences: list[float] | None = None) -> dict:
    """The JSON object of one utterance, in the published key order, then ours.

    Args:
        confidences: of each word, where a model gave the times.
    """
    clip = sample.clip
    row = {"audio_path": clip.source, "text": sample.text, "timestamps": [list(span) for span in sample.spans or ()]}
    if clip.start or clip.end is not None:
        row |= {"start": clip.start, "end": clip.end}
    row |= {"key": sample.key, "speech_length": sample.speech_length}
    row |= {"language": sample.language} if sample.language else {}
    return row | ({} if confidences is None else {"confidences": confidences})


def from_row(row: dict, where: str, key: str) -> Sample:
    """The utterance of one JSON object. ``key`` serves where the row has none.

    The length of the audio is read from its header where the row does not tell it.

    Raises:
        UserError: the row is not of the form above, its times are out of order or beyond the audio, or no length is
            told and the header cannot be read.
    """
    try:
        key, end = str(row.get("key", key)), row.get("end")
        if key.split() != [key]:
            raise ValueError(f"the key {key!r} is not one word")
        if not isinstance(row["audio_path"], str) or not isinstance(row["text"], str):
            raise ValueError("audio_path and text are text")
        clip = Clip(row["audio_path"], float(row.get("start") or 0.0), None if end is None else float(end))
        spans = tuple(Span(float(start), float(stop)) for start, stop in row.get("timestamps") or ())
        length = int(row["speech_length"]) if "speech_length" in row else speech_length(audio.duration(clip))
        check_spans(spans, length / 100 + SLACK)
        return Sample(
            key=key,
            clip=clip,
            prompt=Prompt(),
            text=row["text"],
            speech_length=length,
            text_length=len(row["text"]),
            where=where,
            spans=spans or None,
            language=str(row.get("language") or ""),
        )
    except KeyError as error:
        raise UserError(f"{where}: no {error} in the row; tools/prepare_aligner_data.py makes such rows") from error
    except (TypeError, ValueError, OverflowError, audio.AudioError) as error:
        raise UserError(f"{where}: utterance {key}: not a row of alignment: {error}; mend the row") from error


def check_spans(spans: tuple[Span, ...], seconds: float) -> None:
    """Raises ValueError where times run backwards or lie outside an audio of so many seconds."""
    times = list(chain.from_iterable(spans))
    for number, (start, end) in enumerate(spans, 1):
        if not (math.isfinite(start) and math.isfinite(end) and 0 <= start <= end):
            raise ValueError(f"word {number} is from {start:g} to {end:g} s; a word ends after it starts")
    for number, (before, after) in enumerate(pairwise(times)):
        if after < before - ROUNDED:
            raise ValueError(f"word {number // 2 + 2} starts at {after:g} s, before its neighbour ends at {before:g} s")
    if times and times[-1] > seconds:
        raise ValueError(f"the last word ends at {times[-1]:g} s, and the audio at {seconds:g} s")
