"""One utterance on its way, whatever format it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Clip(NamedTuple):
    """A stretch of audio: a path, URL, ``ark:offset``, ``shard.tar:offset`` or Kaldi pipe, and the part in seconds."""

    source: str
    start: float = 0.0
    end: float | None = None  # None: to the end of the recording


class Span(NamedTuple):
    """A stretch of time in an utterance, in seconds from its start."""

    start: float
    end: float


class Prompt(NamedTuple):
    """The text around the audio: the system's, and the user's before and after the audio."""

    system: str = "You are a helpful assistant."
    before: str = "语音转写："
    after: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """One utterance.

    Args:
        key: utterance id, unique in its set.
        clip: where its audio is.
        prompt: what the model is asked.
        text: the reference; None where it is unknown.
        speech_length: frames of 10 ms, as Fun-ASR counts them (see :func:`speech_length`).
        text_length: tokens of the reference; 0 where it is unknown.
        where: ``file:line``, for messages.
        spans: when each word of the text is spoken; None where it is unknown.
        language: of the text, such as English; empty where it does not matter or is unknown.
    """

    key: str
    clip: Clip
    prompt: Prompt
    text: str | None
    speech_length: int
    text_length: int
    where: str
    spans: tuple[Span, ...] | None = None
    language: str = ""


def speech_length(seconds: float) -> int:
    """Frames of 25 ms every 10 ms in that many seconds, counted as Fun-ASR's scp2jsonl.py counts them."""
    return int((seconds * 1000 - 25) // 10 + 1)
