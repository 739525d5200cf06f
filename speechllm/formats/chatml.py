"""ChatML JSONL: what Fun-ASR-Nano's users have, with our optional ``key``, ``start`` and ``end``."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Sequence

from speechllm.errors import UserError
from speechllm.sample import Clip, Prompt, Sample

AUDIO = re.compile(r"<\|startofspeech\|>!(.*?)<\|endofspeech\|>", re.DOTALL)


def to_row(sample: Sample) -> dict:
    """The JSON object of one utterance, in upstream's key order, then ours."""
    prompt, clip = sample.prompt, sample.clip
    user = f"{prompt.before}<|startofspeech|>!{clip.source}<|endofspeech|>{prompt.after}"
    contents = {"system": prompt.system, "user": user, "assistant": sample.text}
    row = {
        "messages": [{"role": role, "content": text} for role, text in contents.items() if text is not None],
        "speech_length": sample.speech_length,
        "text_length": sample.text_length,
        "key": sample.key,
    }
    if clip.start or clip.end is not None:
        row |= {"start": clip.start, "end": clip.end}
    return row


def from_row(row: dict, where: str, key: str) -> Sample:
    """The utterance of one JSON object. ``key`` serves where the row has none, as upstream's rows do.

    Raises:
        UserError: the row is not of the form that docs/formats.md gives.
    """
    try:
        messages = {message["role"]: message["content"] for message in row["messages"]}
        parts = AUDIO.split(messages["user"])
        if len(parts) != 3:
            raise ValueError(f"{len(parts) // 2} audio marks in the user's message, one expected")
        if len(messages) != len(row["messages"]) or set(messages) - {"system", "user", "assistant"}:
            raise ValueError("one system, one user and one assistant message expected")
        if not all(isinstance(text, str) for text in messages.values()):
            raise ValueError("a message that is not text")
        key, end = str(row.get("key", key)), row.get("end")
        if key.split() != [key]:
            raise ValueError(f"the key {key!r} is not one word")
        before, source, after = parts
        return Sample(
            key=key,
            clip=Clip(source, float(row.get("start") or 0.0), None if end is None else float(end)),
            prompt=Prompt(messages.get("system", Prompt().system), before, after),
            text=messages.get("assistant"),
            speech_length=int(row["speech_length"]),
            text_length=int(row.get("text_length", 0)),
            where=where,
        )
    except KeyError as error:
        raise UserError(f"{where}: no {error} in the row; make the file with tools/scp2jsonl.py") from error
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise UserError(f"{where}: not a ChatML row: {error}; make the file with tools/scp2jsonl.py") from error


class ChatmlFile(Sequence):
    """A JSONL file as a sequence of Samples, each read from disk when asked for.

    Opening reads the file once, to check every row and to note its place and lengths.

    Attributes:
        speech_lengths, text_lengths: one integer per row, frames of 10 ms and tokens.
        keys: one utterance id per row.
        prompts: how many rows carry each prompt.

    Raises:
        UserError: no such file, no row in it, a line that is not a ChatML row, an id that stands twice.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        self.speech_lengths, self.text_lengths, self.keys, self._offsets, self._lines = [], [], [], [], []
        self.prompts: Counter[Prompt] = Counter()
        seen: dict[str, int] = {}
        if not os.path.isfile(self.path):
            raise UserError(f"{self.path}: no such file; make it with tools/scp2jsonl.py")
        with open(self.path, "rb") as file:
            offset = 0
            for number, line in enumerate(file, 1):
                if line.strip():
                    sample = self._parse(line, number)
                    if sample.key in seen:
                        raise UserError(
                            f"{sample.where}: utterance {sample.key} stands on line {seen[sample.key]} already; "
                            "ids must be unique"
                        )
                    seen[sample.key] = number
                    self.keys.append(sample.key)
                    self.prompts[sample.prompt] += 1
                    self.speech_lengths.append(sample.speech_length)
                    self.text_lengths.append(sample.text_length)
                    self._offsets.append(offset)
                    self._lines.append(number)
                offset += len(line)
        if not self.keys:
            raise UserError(f"{self.path}: no row in the file; make it with tools/scp2jsonl.py")

    def _parse(self, line: bytes, number: int) -> Sample:
        where = f"{self.path}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where}: not JSON: {error}; mend or remove the line") from error
        stem = "_".join(os.path.splitext(os.path.basename(self.path))[0].split())
        return from_row(row, where, f"{stem}-{number:07d}")

    @property
    def sizes(self) -> list[int]:
        """Per row, what a batch's budget counts, as upstream's batches: frames of 10 ms plus tokens of the text."""
        return [speech + text for speech, text in zip(self.speech_lengths, self.text_lengths, strict=True)]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        with open(self.path, "rb") as file:
            file.seek(self._offsets[index])
            return self._parse(file.readline(), self._lines[index])
