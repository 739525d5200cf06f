"""WebDataset's shards: tars that hold ``key.wav`` (flac, mp3, ogg) and ``key.txt``, or ``key.json`` with "text".

The members may stand in any order. Audio is read out of the tar where it stands, as ``shard.tar:offset``.
"""

from __future__ import annotations

import glob
import json
import logging
import os
import re
import tarfile
from collections import Counter
from collections.abc import Sequence
from typing import BinaryIO, NamedTuple

from speechllm.errors import UserError
from speechllm.formats import contract, kaldi
from speechllm.formats.index import Index, Line
from speechllm.formats.kaldi import Fault
from speechllm.processes import WORKERS, ordered

AUDIO = (".wav", ".flac", ".mp3", ".ogg")
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
AGAIN = "the id stands at {place} already; rename or remove one of them"
log = logging.getLogger("speechllm")


class Listing(NamedTuple):
    """What one shard holds.

    Args:
        audio: one Line per recording, its value ``shard.tar:offset``.
        texts: one Line per text.
        others: how many files of other kinds, by ending.
    """

    audio: list[Line]
    texts: list[Line]
    others: Counter[str]


def expand(pattern: str) -> list[str]:
    """The paths of ``x-{000..012}.tar`` or ``x-*.tar``, in order.

    Raises:
        UserError: a shard that is not there, or none at all.
    """
    if found := RANGE.search(pattern):
        first, last = found.groups()
        numbers = range(int(first), int(last) + 1)
        names = [f"{pattern[: found.start()]}{n:0{len(first)}d}{pattern[found.end() :]}" for n in numbers]
        paths = [path for name in names for path in expand(name)]
    else:
        paths = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing or not paths:
        raise UserError(
            f"{(missing or [pattern])[0]}: no such file; give shards that are here, as data/x-{{000..012}}.tar"
        )
    return paths


def join(paths: Sequence[str], hotwords: str = "", workers: int = WORKERS, on_fault: Fault = kaldi.refuse) -> Index:
    """The utterances of all shards that have both audio and text, in the order of the audio.

    Faults: audio without text, text without audio, no text in a text, an id that stands twice, a truncated shard.

    Raises:
        UserError: a file that is no tar, or a compressed one.
    """
    on_fault, known = contract.noting(on_fault)
    index, others = Index(), Counter()
    for _, listing in ordered(scan, paths, workers):
        index.load("scp", listing.audio)
        index.load("text", listing.texts)
        others += listing.others
    index.finish("scp", AGAIN, on_fault)
    index.finish("text", AGAIN, on_fault)
    index.join("scp")
    if others:
        log.info("passed over in the shards: %s", ", ".join(f"{count} {kind}" for kind, count in others.most_common()))
    no_audio = f"text without audio: no {', '.join(AUDIO)} of this name; add it or remove the member"
    no_text = "audio without text: no .txt or .json of this name; add it or remove the member"
    contract.match(index, no_audio, no_text, hotwords, on_fault, known)
    return index


def scan(path: str) -> Listing:
    """List one shard by its headers and texts; audio is not read.

    Raises:
        UserError: a file that is no tar, or a compressed one.
    """
    audio, texts, spoken, others = [], [], [], Counter()
    with open(path, "rb") as file, _open(path) as tar:
        size, last = os.fstat(file.fileno()).st_size, ""
        while member := _next(tar):
            last = member.name
            stem, kind = os.path.splitext(last.removeprefix("./").lower())
            stem = last.removeprefix("./")[: len(stem)]
            lines = {".txt": texts, ".json": spoken}.get(kind, audio if kind in AUDIO else None)
            if lines is None or not member.isreg() or os.path.basename(stem).startswith("."):
                others.update([kind or "nameless"] if member.isreg() else [])
            else:
                lines.append(_line(stem, kind, member, path, file, size))
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            fault = "the shard breaks off or is damaged after this member; copy it anew"
            audio.append(Line(os.path.basename(path), "", f"{path}:{last}", fault))
    told = {line.key for line in texts}
    return Listing(audio, texts + [line for line in spoken if line.key not in told], others)


def _open(path: str) -> tarfile.TarFile:
    with open(path, "rb") as file:
        start = file.read(6)
    for magic, name in PACKED.items():
        if start.startswith(magic):
            raise UserError(
                f"{path}: compressed with {name}, so that no member can be reached; unpack it to a plain tar"
            )
    try:
        return tarfile.open(path, "r:", encoding="utf-8", errors="replace")
    except tarfile.ReadError as error:
        raise UserError(f"{path}: not a tar ({error}); give shards of key.wav and key.txt") from error


def _next(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The next member; None at the end, wherever that is."""
    tar.members.clear()  # it would keep them all
    try:
        return tar.next()
    except tarfile.ReadError:
        return None


def _line(key: str, kind: str, member: tarfile.TarInfo, path: str, file: BinaryIO, size: int) -> Line:
    place, start = f"{path}:{member.name}", member.offset_data
    if start + member.size > size:
        return Line(key, "", place, "truncated: the shard ends within this member; copy it anew")
    if key.split() != [key]:
        return Line(key, "", place, "its name is the id, which has to be one word; rename the member")
    if member.issparse():
        return Line(key, "", place, "stored with holes; pack the shard without --sparse")
    if kind in AUDIO:
        return Line(key, f"{path}:{start}", place)
    file.seek(start)
    try:
        return Line(key, _words(file.read(member.size), kind), place)
    except (ValueError, KeyError, TypeError) as error:
        return Line(key, "", place, f'no text in it ({error!r}); UTF-8 or, in a .json, a "text" is expected')


def _words(body: bytes, kind: str) -> str:
    text = body.decode("utf-8-sig")
    if kind == ".json":
        text = json.loads(text)["text"]
    words = " ".join(re.split(r"[\r\n]+", text.strip(" \t\r\n")))
    if not words:
        raise ValueError("it is empty")
    return words
