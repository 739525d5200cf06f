"""ChatML JSONL: what Fun-ASR-Nano's users have, with our optional ``key``, ``start`` and ``end``."""

from __future__ import annotations

import re

from speechllm.errors import UserError
from speechllm.sample import Clip, Prompt, Sample

AUDIO = re.compile(r"<\|startofspeech\|>!(.*?)<\|endofspeech\|>", re.DOTALL)
LONGEST = 2**31 - 1  # frames or tokens that the index holds; 248 days of audio


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
        lengths = int(row["speech_length"]), int(row.get("text_length", 0))
        if not 0 <= min(lengths) <= max(lengths) <= LONGEST:
            raise ValueError(f"a speech_length of {lengths[0]} and a text_length of {lengths[1]}")
        before, source, after = parts
        return Sample(
            key=key,
            clip=Clip(source, float(row.get("start") or 0.0), None if end is None else float(end)),
            prompt=Prompt(messages.get("system", Prompt().system), before, after),
            text=messages.get("assistant"),
            speech_length=lengths[0],
            text_length=lengths[1],
            where=where,
        )
    except KeyError as error:
        raise UserError(f"{where}: no {error} in the row; make the file with tools/scp2jsonl.py") from error
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise UserError(f"{where}: not a ChatML row: {error}; make the file with tools/scp2jsonl.py") from error
