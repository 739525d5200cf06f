"""Utterances to the rows of a ChatML JSONL: measured and tokenised in several processes, resumed after a kill.

While it is made, ``<jsonl_file>.part`` holds what is done: a line that says what it is made of, then one line per
utterance in order, ``seconds row`` or ``! fault``. The JSONL itself lands whole, at the end.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from speechllm import audio
from speechllm.errors import Rejects, UserError
from speechllm.files import atomic_write
from speechllm.formats import kaldi
from speechllm.formats.chatml import to_row
from speechllm.formats.contract import Aligned
from speechllm.formats.index import Index, Utterance
from speechllm.formats.prompts import with_hotwords
from speechllm.processes import batched, ordered
from speechllm.sample import Prompt, Sample, speech_length

log = logging.getLogger("speechllm")


class Part:
    """The part-file of a JSONL, locked while it is open: what is done goes in, and is there again after a kill.

    Args:
        made_of: what must be the same for the file to be gone on from; else it begins anew.

    Attributes:
        rejects: takes the faults, those of an earlier run too.
        done, rows, seconds: utterances, those without a fault, and how long these are.

    Raises:
        UserError: another run writes the same file.
    """

    def __init__(self, path: str, made_of: Any, rejects: Rejects):
        self.path, self.rejects = path, rejects
        self.done, self.rows, self.seconds = 0, 0, 0.0
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        self._file = open(path, "a+b")  # noqa: SIM115 (__exit__ closes it)
        self._lock()
        self._head = json.dumps(made_of).encode() + b"\n"
        self._file.seek(0)
        same = self._file.readline() == self._head
        whole = len(self._head) if same else 0
        for line in self._file if same else ():
            if line.endswith(b"\n"):  # the kill may have cut the last one
                self._count(line)
                whole += len(line)
        self._file.truncate(whole)
        if not same:
            self._file.write(self._head)

    def __enter__(self) -> Part:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def _lock(self) -> None:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise UserError(f"{self.path}: another run writes it now; wait for its end, or stop it") from error
        except OSError:  # a file system that has no locks
            log.warning("%s cannot be locked here; let no other run write it at the same time", self.path)

    def _count(self, line: bytes) -> None:
        mark, _, rest = line.partition(b" ")
        self.done += 1
        if mark == b"!":
            self.rejects.add(*json.loads(rest))
        else:
            self.rows += 1
            self.seconds += float(mark)

    def append(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            self._file.write(line)
            self._count(line)
        self._file.flush()

    def land(self, path: str) -> None:
        """Write the rows to the file that they are for."""
        with atomic_write(path, "wb") as file:
            self._file.seek(len(self._head))
            file.writelines(line.partition(b" ")[2] for line in self._file if not line.startswith(b"!"))

    def remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.remove(self.path)


def made_of(files: Sequence[str], *options: Any) -> list:
    """The files as they are now (empty names left out), the options, and the folder that relative paths start from."""
    stats = [(path, os.stat(path)) for path in files if path]
    return [os.getcwd(), [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats], *options]


def row_maker(
    prompt: Prompt, count: Callable[[list[str]], list[int | UserError]], allow_pipes: bool
) -> Callable[[list[Utterance]], list[bytes]]:
    """A function that gives the part-file's lines of a few utterances.

    Args:
        prompt: of the utterances that bring none.
        count: tokens of each of many texts, see :func:`speechllm.formats.tokens.counter`.
        allow_pipes: run the commands of Kaldi pipes.
    """

    encode = json.JSONEncoder(ensure_ascii=False).encode

    def make(utterances: list[Utterance]) -> list[bytes]:
        lines = []
        seconds = audio.measure([one.clip for one in utterances], allow_pipes)
        tokens = count([one.text for one in utterances])
        for one, length, number in zip(utterances, seconds, tokens, strict=True):
            if fault := next((found for found in (length, number) if isinstance(found, UserError)), None):
                lines.append(f"! {json.dumps([one.key, one.where, str(fault)])}\n".encode())
                continue
            asked = Prompt(*json.loads(one.prompt)) if one.prompt else prompt
            if one.hotwords:
                asked = with_hotwords(asked, kaldi.hotwords(one.hotwords))
            sample = Sample(one.key, one.clip, asked, one.text, speech_length(length), number, one.where)
            lines.append(f"{length:.6f} {encode(to_row(sample))}\n".encode())
        return lines

    return make


def write_rows(
    utterances: Aligned | Index,
    make: Callable[[list[Utterance]], list[bytes]],
    part: Part,
    jsonl_file: str,
    workers: int,
) -> None:
    """Complete the part-file and let the JSONL land.

    Raises:
        UserError: more bad utterances than the part's rejects allow, or no good one. Then the part-file is removed: the
            next run looks at all audio anew.
    """
    from tqdm import tqdm

    if part.done:
        log.info("going on from %s: %d of %d utterances are done", part.path, part.done, len(utterances))
    left = itertools.islice(utterances, part.done, None)
    with tqdm(total=len(utterances), initial=part.done, unit="utt", disable=None) as bar:
        for block, lines in ordered(make, batched(left, audio.BLOCK), workers):
            part.append(lines)
            bar.update(len(block))
    try:
        part.rejects.close()
        if not part.rows:
            raise UserError(f"{jsonl_file}: no utterance with audio and text; see {part.rejects.path}")
    except UserError:
        part.remove()
        raise
    part.land(jsonl_file)
    part.remove()
    log.info("%s: %d utterances, %.2f h", jsonl_file, part.rows, part.seconds / 3600)
