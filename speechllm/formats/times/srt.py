"""SubRip subtitles, read and written by the package srt: a cue per word."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from datetime import timedelta

from speechllm.errors import UserError
from speechllm.formats.times.word import Word, is_pause, read_text

STYLE = re.compile(r"</?[a-zA-Z][^<>]*>|\{\\[^{}]*\}")  # <i>, <font ...>, {\an8}


def read(path: str) -> list[Word]:
    """The cues, each with its whole text. Raises UserError: not subtitles."""
    import srt

    try:
        cues = list(srt.parse(read_text(path)))
    except (srt.SRTParseError, srt.TimestampParseError) as error:
        raise UserError(f"{path}: not SRT: {error}; mend the file") from error
    words = [Word(" ".join(STYLE.sub("", cue.content).split()), *map(_seconds, (cue.start, cue.end))) for cue in cues]
    return [word for word in words if not is_pause(word.text)]


def _seconds(time: timedelta) -> float:
    return time.total_seconds()


def write(path: str, words: Sequence[Word]) -> None:
    """A cue per word, to the millisecond; the file is not written atomically."""
    import srt

    cues = [
        srt.Subtitle(
            number, *(timedelta(milliseconds=round(time * 1000)) for time in (word.start, word.end)), word.text
        )
        for number, word in enumerate(words, 1)
    ]
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(srt.compose(cues, reindex=False))
