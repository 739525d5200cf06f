"""What the formats of times share."""

from __future__ import annotations

import codecs
import re
from typing import NamedTuple

from speechllm.errors import UserError

PAUSES = {"", "sil", "sp"}
MARK = re.compile(r"<.*>|\[.*\]|\{.*\}")  # <eps>, [noise] and the like


class Word(NamedTuple):
    """One word, or another stretch with a label, in seconds from the utterance's start."""

    text: str
    start: float
    end: float
    confidence: float | None = None


def is_pause(label: str) -> bool:
    """Whether a label marks a pause or a noise: it is empty, sil, sp, or stands in brackets."""
    return label.casefold() in PAUSES or MARK.fullmatch(label) is not None


def read_text(path: str) -> str:
    """The text of a file in UTF-8 or, where it begins with the mark, UTF-16. Raises UserError: it is in neither."""
    with open(path, "rb") as file:
        body = file.read()
    marked = body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return body.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: neither UTF-8 nor UTF-16 ({error}); save the file in UTF-8") from error
