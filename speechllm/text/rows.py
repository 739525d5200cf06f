"""Files of ``utt text`` or ``utt<TAB>text`` rows, as the scorers read and write them."""

from __future__ import annotations

import os
from collections.abc import Mapping

from speechllm.errors import UserError
from speechllm.files import atomic_write


def read_rows(path: str | os.PathLike) -> dict[str, str]:
    """Text by utterance, in file order. An id alone is an empty text, which a hypothesis may be.

    Raises:
        UserError: no such file, no row in it, not UTF-8, or an id that stands twice.
    """
    path, texts, lines = os.fspath(path), {}, {}
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file; give a file of `utt text` rows")
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                words = line.split(maxsplit=1)
                if not words:
                    continue
                key = words[0]
                if key in texts:
                    raise UserError(
                        f"{path}:{number}: utterance {key} stands on line {lines[key]} already; remove one of them"
                    )
                texts[key], lines[key] = words[1].strip() if len(words) > 1 else "", number
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8: {error}; convert it with iconv") from error
    if not texts:
        raise UserError(f"{path}: no row in the file; one `utt text` per line is expected")
    return texts


def write_rows(path: str | os.PathLike, texts: Mapping[str, str]) -> None:
    """Write ``utt<TAB>text`` rows, in the mapping's order."""
    with atomic_write(path) as file:
        for key, text in texts.items():
            file.write(f"{key}\t{text}\n")
