"""Conversation rows: a user's turn that holds the audio's path, and the assistant's answer.

    {"conversations": [{"from": "user", "value": "<audio>/data/sa1.wav</audio>请你做语音评测"},
                       {"from": "assistant", "value": "sil sh iy hh ae"}]}

A file is JSONL, one row per line, or one JSON list of rows. JSONL is read line by line; a list is read whole, and takes
several times its size of memory meanwhile. A system turn may come first, and a row may have an ``id``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from speechllm.errors import UserError
from speechllm.formats import kaldi
from speechllm.formats.index import Index, Line
from speechllm.formats.kaldi import Fault
from speechllm.processes import batched
from speechllm.sample import Prompt
from speechllm.sources import SCHEME

AUDIO = re.compile(r"<audio>(.*?)</audio>", re.DOTALL)
TURNS = (["user", "assistant"], ["system", "user", "assistant"])
AGAIN = "the id stands at {place} already; rename or remove one of them"
BLOCK = 1000  # rows that go into the index at once


class Conversation(NamedTuple):
    source: str
    prompt: Prompt
    answer: str


class Row(NamedTuple):
    """One object of a file.

    Args:
        number: its line or, in a JSON list, its place in the list, from 1.
        where: the same with the file's name, for messages.
        value: the object; None where there is a fault.
    """

    number: int
    where: str
    value: Any
    fault: str = ""


def rows(path: str) -> Iterator[Row]:
    """The objects of a JSON list or of a JSONL, whatever their form; blank lines are passed over.

    Raises:
        UserError: no such file, or a list that is not JSON.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file; give a JSON list or a JSONL of conversations")
    with open(path, "rb") as file:
        if first_byte(path) == b"[":
            try:
                values = json.load(file)
            except ValueError as error:
                raise UserError(f"{path}: not JSON: {error}; mend the file") from error
            yield from (Row(number, f"{path}, row {number}", value) for number, value in enumerate(values, 1))
            return
        for number, line in enumerate(file, 1):
            try:
                if line.strip():
                    yield Row(number, f"{path}:{number}", json.loads(line))
            except ValueError as error:
                yield Row(number, f"{path}:{number}", None, f"not JSON: {error}; write one object per line, or a list")


def first_byte(path: str) -> bytes:
    """The first byte that says something: not of a blank line, nor of a byte order mark."""
    with open(path, "rb") as file:
        for line in file:
            if text := line.removeprefix(kaldi.BOM).strip():
                return text[:1]
    return b""


def parse(value: Any) -> Conversation:
    """What one object says. Raises ValueError, which says what was found and ends with the mend."""
    try:
        turns = [(turn["from"], turn["value"]) for turn in value["conversations"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f'"conversations", turns of "from" and "value", expected ({error!r}); mend the row') from None
    if [name for name, _ in turns] not in TURNS or not all(isinstance(text, str) for _, text in turns):
        found = ", ".join(f"{name} ({type(text).__name__})" for name, text in turns) or "nothing"
        raise ValueError(f"turns of user and assistant (str) expected, at most system before; found {found}; mend them")
    said = dict(turns)
    parts = AUDIO.split(said["user"])
    if len(parts) != 3 or not parts[1].strip():
        found = "no path in it" if len(parts) == 3 else f"{len(parts) // 2} of them"
        raise ValueError(f"one <audio>path</audio> expected in the user's turn, found {found}; add or remove it")
    if not said["assistant"].strip():
        raise ValueError("the assistant's turn is empty; write the answer, or remove the row")
    prompt = Prompt(said.get("system", Prompt().system), parts[0], parts[2])
    return Conversation(parts[1].strip(), prompt, said["assistant"].strip())


def join(path: str, on_fault: Fault = kaldi.refuse) -> Index:
    """The utterances of all rows, each with its prompt, in order.

    A row without ``id`` gets the file's name and its number. A relative path counts from where we run or, if there is
    no such file, from the folder of ``path``.

    Faults: a row that is not of the form above, an id that stands twice (the first stays).

    Raises:
        UserError: no such file, or a list that is not JSON.
    """
    index = Index()
    stem = "_".join(os.path.splitext(os.path.basename(path))[0].split())
    for block in batched(rows(path), BLOCK):
        lines = [_lines(row, stem, os.path.dirname(path)) for row in block]
        for name in ("scp", "text", "prompt"):
            index.load(name, [line[name] for line in lines if name in line])
    index.finish("scp", AGAIN, on_fault)
    for name in ("text", "prompt"):
        index.finish(name, AGAIN, _told)
    index.join("scp")
    return index


def _lines(row: Row, stem: str, folder: str) -> dict[str, Line]:
    """The lines of an Index that a row makes, by table; of a row with a fault, the one that tells of it."""
    key = f"{stem}-{row.number:07d}"
    try:
        if row.fault:
            raise ValueError(row.fault)
        found = parse(row.value)
        if (given := row.value.get("id")) is not None:
            key = str(given)
        if key.split() != [key]:
            raise ValueError(f"the id {key!r} is not one word; rename it")
    except ValueError as error:
        return {"scp": Line(key, "", row.where, str(error))}
    values = {"scp": _find(found.source, folder), "text": found.answer, "prompt": json.dumps(found.prompt)}
    return {name: Line(key, value, row.where) for name, value in values.items()}


def _find(source: str, folder: str) -> str:
    """A path relative to where we run, as it is; one that is there only beside the rows, with their folder."""
    path = re.sub(r":\d+$", "", source)  # without the offset of an ark or a tar
    beside = os.path.join(folder, path)
    if SCHEME.match(source) or os.path.exists(path) or not os.path.exists(beside):
        return source
    return os.path.join(folder, source)


def _told(key: str, where: str, reason: str) -> None:
    """For the tables whose rows are those of another one, which has told their faults."""
