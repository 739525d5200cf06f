"""JSONL files of any of our formats, as one sequence of Samples."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import os
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence

import numpy as np

from speechllm.errors import UserError
from speechllm.formats import aligner, chatml
from speechllm.formats.prompts import without_hotwords
from speechllm.sample import Prompt, Sample

COUNTED_PROMPTS = 1000
HELD_OUT, MOST_HELD_OUT = 0.05, 200  # share of the rows, and rows

# The key that tells a format, and its reader: (row, where, key where the row has none) -> Sample.
READERS = {"messages": chatml.from_row, "audio_path": aligner.from_row}


def read_row(row: object, where: str, key: str) -> Sample:
    """The utterance of one JSON object.

    Raises:
        UserError: the row is of none of the forms that docs/formats.md gives.
    """
    for sign, reader in READERS.items():
        if isinstance(row, dict) and sign in row:
            return reader(row, where, key)
    signs = " or ".join(repr(sign) for sign in READERS)
    raise UserError(f"{where}: no {signs} in the row; make the file with tools/scp2jsonl.py")


class JsonlFile(Sequence):
    """JSONL files as one sequence of Samples, each read from disk when asked for.

    Opening reads every file once, to check every row and to note its place and lengths: 24 bytes per row stay in
    memory, in arrays, which forked workers share.

    Args:
        path: a JSONL; or, as FunASR has it, a file whose name ends neither in ``.jsonl`` nor in ``.json`` and that
            lists JSONLs, one path per line, relative to the list's folder or, where there is none, to where we run.

    Attributes:
        speech_lengths, text_lengths: one integer per row, frames of 10 ms and tokens.
        prompts: how many rows carry each prompt, hotwords left out. Only the first 1,000 different ones are counted, so
            that prompts that differ from row to row do not fill the memory.

    Raises:
        UserError: no such file, no row in it, a line that is not a row, an id that stands twice.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        self.speech_lengths, self.text_lengths = array("i"), array("i")
        self.prompts: Counter[Prompt] = Counter()
        self._files = _listed(self.path)
        self._stems = _stems(self._files)
        self._firsts: list[int] = []  # of each file, its first row
        self._lines, self._offsets, self._hashes = array("i"), array("q"), array("I")
        for file in range(len(self._files)):
            self._firsts.append(len(self))
            self._index(file)
            if len(self) == self._firsts[-1]:
                raise UserError(f"{self._files[file]}: no row in the file; make it with tools/scp2jsonl.py")
        self._check_keys(np.asarray(self._hashes))

    def _index(self, file: int) -> None:
        """Check one file's rows and note where they are."""
        offset = 0
        with open(self._files[file], "rb") as rows:
            for number, line in enumerate(rows, 1):
                if line.strip():
                    sample = self._parse(line, file, number)
                    self._hashes.append(digest(sample.key))
                    prompt = without_hotwords(sample.prompt)
                    if prompt in self.prompts or len(self.prompts) < COUNTED_PROMPTS:
                        self.prompts[prompt] += 1
                    self.speech_lengths.append(sample.speech_length)
                    self.text_lengths.append(sample.text_length)
                    self._lines.append(number)
                    self._offsets.append(offset)
                offset += len(line)

    def _check_keys(self, hashes: np.ndarray) -> None:
        """Raise at the first row whose id stands before it. Rows of equal hashes are read again: (rows,) uint32."""
        order = np.argsort(hashes, kind="stable")
        ordered = hashes[order]
        for row in np.sort(order[1:][ordered[1:] == ordered[:-1]]):
            sample = self[row]
            alike = order[np.searchsorted(ordered, hashes[row]) :]  # from the first row of this hash on, by row
            for earlier in map(self.__getitem__, itertools.takewhile(lambda i, row=row: i < row, alike)):
                if earlier.key == sample.key:
                    file, _, line = earlier.where.rpartition(":")
                    place = f"line {line}" if sample.where.startswith(f"{file}:") else f"line {line} of {file}"
                    raise UserError(
                        f"{sample.where}: utterance {sample.key} stands on {place} already; ids must be unique"
                    )

    def _parse(self, line: bytes, file: int, number: int) -> Sample:
        where = f"{self._files[file]}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where}: not JSON: {error}; mend or remove the line") from error
        return read_row(row, where, f"{self._stems[file]}-{number:07d}")

    def hold_out(self) -> tuple[JsonlFile, JsonlFile]:
        """The rows in two parts, to train on and to choose the best checkpoint by: 5% of them, at least 1, at most 200.

        Their ids decide, whatever their order: those whose hashes are the lowest are held out.

        Raises:
            UserError: there is one row alone.
        """
        if len(self) < 2:
            raise UserError(f"{self.path}: one row, and none to hold out; add rows, or set valid_data_set_list")
        hashes = np.asarray(self._hashes)
        count = min(max(round(len(self) * HELD_OUT), 1), MOST_HELD_OUT)
        held = hashes <= np.partition(hashes, count - 1)[count - 1]
        return self._part(~held), self._part(held)

    def _part(self, chosen: np.ndarray) -> JsonlFile:
        """Some of the rows, in their order; ``prompts`` stays that of all.

        Args:
            chosen: (rows,) bool.
        """
        part = copy.copy(self)
        for name in ("speech_lengths", "text_lengths", "_lines", "_offsets", "_hashes"):
            whole = getattr(self, name)
            setattr(part, name, array(whole.typecode, np.asarray(whole)[chosen].tobytes()))
        part._firsts = np.append(0, chosen.cumsum())[self._firsts].tolist()
        return part

    @property
    def sizes(self) -> np.ndarray:
        """(rows,) what a batch's budget counts, as upstream's batches: frames of 10 ms plus tokens of the text."""
        return np.add(self.speech_lengths, self.text_lengths, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        file = bisect_right(self._firsts, index) - 1
        with open(self._files[file], "rb") as rows:
            rows.seek(self._offsets[index])
            return self._parse(rows.readline(), file, self._lines[index])


def digest(key: str) -> int:
    """Hash of an id, of 32 bits, the same in every process; its low values are as good a draw as any."""
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=4).digest(), "big")


def _listed(path: str) -> list[str]:
    """The JSONLs that a name stands for: itself, or those that the file lists."""
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file; make it with tools/scp2jsonl.py")
    if path.endswith((".jsonl", ".json")):
        return [path]
    files = []
    with open(path, encoding="utf-8", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            if name := line.strip():
                beside = os.path.join(os.path.dirname(path), name)
                files.append(beside if os.path.isfile(beside) else name)
                if not os.path.isfile(files[-1]):
                    raise UserError(
                        f"{path}:{number}: no such file: {name[:200]}; a file whose name does not end in .jsonl lists "
                        "JSONLs, one path per line: correct the path, or rename the file"
                    )
    if not files:
        raise UserError(f"{path}: lists no file; write one path of a JSONL per line")
    return files


def _stems(files: list[str]) -> list[str]:
    """What begins the ids of a file's rows that have none: its name, numbered where two folders hold the same name."""
    stems, seen = [], Counter()
    for path in files:
        stem = "_".join(os.path.splitext(os.path.basename(path))[0].split())
        seen[stem] += 1
        stems.append(stem if seen[stem] == 1 else f"{stem}.{seen[stem]}")
    return stems
