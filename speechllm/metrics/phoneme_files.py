"""The files that phoneme sequences are scored from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass

from speechllm.errors import UserError
from speechllm.text.rows import read_rows

LONGEST_PHONEME = 3  # characters; a first column of longer words may be ids
MANY = 10  # lines whose first words are all different and stand nowhere else: these are ids, however short


@dataclass(frozen=True)
class Heard:
    """A hypothesis.

    Args:
        text: its phonemes as they stand in the file.
        confidences: of each of its words, phonemes and the marks of their stretches, 0 to 1; None without any.
        error: why the audio could not be read, if so; the text is then empty.
    """

    text: str
    confidences: list[float] | None = None
    error: str = ""


def read_hypotheses(path: str | os.PathLike, field: str = "text") -> dict[str, Heard]:
    """Hypotheses by utterance: the decoder's ``.jsonl``, or ``utt phoneme ...`` rows (hyp.txt, Kaldi's text-phone).

    Args:
        field: of the .jsonl, what is taken: ``text``, or ``ctc_text``. The confidences are those of ``text``.

    Raises:
        UserError: no such file, or a line that is no such row.
    """
    path = os.fspath(path)
    if not path.endswith(".jsonl"):
        return {key: Heard(text) for key, text in read_rows(path).items()}
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file; give the hyp.jsonl that tools/decode.py wrote, or a file of sequences")
    found = {}
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            key, heard = _row(line, field, f"{path}:{number}")
            if key in found:
                raise UserError(f"{path}:{number}: utterance {key} stands there twice; decode the set again")
            found[key] = heard
    return found


def _row(line: bytes, field: str, where: str) -> tuple[str, Heard]:
    try:
        row = json.loads(line)
        key, error = row["key"], row.get("error", "")
    except (ValueError, KeyError, TypeError, AttributeError) as fault:
        raise UserError(f"{where}: not a row of hyp.jsonl: {fault}; decode the set again") from fault
    if not error and not isinstance(row.get(field), str):
        there = ", ".join(name for name, value in row.items() if name != "key" and isinstance(value, str))
        raise UserError(f"{where}: {key}: no field {field} with phonemes; there are: {there}; choose with --field")
    return key, Heard("" if error else row[field], row.get("confidences") if field == "text" else None, error)


def read_pairs(pred_file: str | os.PathLike, ref_file: str | os.PathLike) -> tuple[dict[str, str], dict[str, Heard]]:
    """References and hypotheses of two files that match by line: one sequence per line, which may be empty, no ids.

    Returns:
        both by line number, as text.

    Raises:
        UserError: no such file, ids in the first column, or files of different numbers of lines.
    """
    predictions, references = _lines(pred_file), _lines(ref_file)
    if len(predictions) != len(references):
        raise UserError(
            f"{pred_file} has {len(predictions)} line(s) and {ref_file} {len(references)}, but lines are paired; "
            "add the missing lines, an empty one for an empty sequence, or give both files ids and say --ids true"
        )
    return references, {number: Heard(text) for number, text in predictions.items()}


def _lines(path: str | os.PathLike) -> dict[str, str]:
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file; give one of phoneme sequences, one per line")
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = {str(number): line.strip("\n") for number, line in enumerate(file, 1)}
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8: {error}; convert it with iconv") from error
    if first := _ids(list(lines.values())):
        raise UserError(
            f"{path}: the first column looks like utterance ids, first {first}; say --ids true to match by them, or "
            "remove it from both files"
        )
    return lines


def _ids(lines: list[str]) -> str:
    """The first id, where the first column is evidently ids: different in every line and found nowhere else.

    In a few lines so may phonemes be; there the words have to be longer than phonemes are, or followed by a tab.
    """
    rows = [line.split() for line in lines if line.strip()]
    firsts, others = {row[0] for row in rows}, {symbol for row in rows for symbol in row[1:]}
    if len(rows) < 2 or not others or len(firsts) < len(rows) or firsts & others:
        return ""
    long = min(map(len, firsts)) > max(LONGEST_PHONEME, *map(len, others))
    tabs = all("\t" in line for line in lines if line.strip())
    return rows[0][0] if long or tabs or len(rows) >= MANY else ""


def texts(heard: Mapping[str, Heard]) -> dict[str, str]:
    return {key: row.text for key, row in heard.items()}
