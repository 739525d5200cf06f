"""Batched decoding: longest first, rows back in input order, the same for every task and family."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from tqdm import tqdm

from speechllm import audio, segments
from speechllm.batching import Draw, Fault, Rows, collate, cut
from speechllm.config import AnswerOptions, DecodeOptions, RunConfig
from speechllm.errors import UserError
from speechllm.files import atomic_write, write_json
from speechllm.formats.prompts import asked_like
from speechllm.provenance import provenance
from speechllm.sample import Clip, Sample, speech_length
from speechllm.segments import Pieced

log = logging.getLogger("speechllm")
DAY = 86400  # seconds


def batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices in batches under the budget, the longest first, so that memory is at its peak at once."""
    lengths = np.asarray(lengths)
    order = np.argsort(lengths, kind="stable")
    return [order[rows.start : rows.stop].tolist() for rows in reversed(cut(lengths[order], budget, "token"))]


def predict(
    family: Any,
    task: Any,
    model: Any,
    samples: Sequence[Sample],
    options: DecodeOptions,
    chosen: list[list[int]],
) -> Iterator[list[tuple[int, dict]]]:
    """Decode batch by batch.

    Args:
        samples: Samples by index.
        chosen: batches of indices, as :func:`batches` makes them.

    Yields:
        ``(index, row)`` for every utterance of a batch. A row has ``key`` and what the task predicts, or ``error``
        where the audio could not be read.
    """
    import torch
    from torch.utils.data import DataLoader

    def query(sample: Sample, draw: Draw) -> dict:
        return task.query(family, sample, audio.read(sample.clip, family.rate, options.allow_pipes))

    def join(items: list) -> tuple[list[Fault | None], dict | None]:
        good = [item for item in items if not isinstance(item, Fault)]
        faults = [item if isinstance(item, Fault) else None for item in items]  # tensors go to the batch alone
        return faults, collate(good, family.fields(generating=True)) if good else None

    loader = DataLoader(
        Rows(samples, query),
        batch_sampler=([Draw(i, 0) for i in rows] for rows in chosen),
        collate_fn=join,
        num_workers=min(options.num_workers, len(chosen)),
        generator=torch.Generator(),  # or the loader would draw from the trainer's random state
    )
    device = next(model.parameters()).device
    model.eval()
    for rows, (faults, batch) in zip(chosen, loader, strict=True):
        with torch.inference_mode():
            moved = {name: tensor.to(device) for name, tensor in batch.items()} if batch else {}
            made = iter(task.predict(family, model, moved, options) if batch else [])
        found = ({"error": fault.reason, "text": ""} if fault else next(made) for fault in faults)
        yield [(i, {"key": samples[i].key} | row) for i, row in zip(rows, found, strict=True)]


def score_dev(
    family: Any, task: Any, model: Any, dev: Sequence[Sample], lengths: Sequence[int], config: RunConfig, place: tuple
) -> dict:
    """Decode this rank's share of the dev set, gather the rows of all ranks, and score them.

    Args:
        place: (rank, number of ranks).

    Returns:
        the task's score, equal on all ranks.
    """
    import torch.distributed as dist

    rank, ranks = place
    options = DecodeOptions(
        max_new_tokens=config.max_new_tokens,
        num_workers=config.dataset_conf.num_workers,
        allow_pipes=config.dataset_conf.allow_pipes,
    )
    chosen = batches(lengths, options.batch_size)[rank::ranks]
    rows = [row for some in predict(family, task, model, dev, options, chosen) for _, row in some]
    if ranks > 1:
        shares: list = [None] * ranks
        dist.all_gather_object(shares, rows)
        rows = [row for share in shares for row in share]
    faults = [f"utterance {row['key']}: {row['error']}" for row in rows if "error" in row]
    if faults:
        raise UserError(f"the dev set cannot be read: {'; '.join(faults)}")
    return task.score({sample.key: _reference(task, sample) for sample in dev}, rows, config)


def _reference(task: Any, sample: Sample) -> Any:
    try:
        return task.reference(sample)
    except UserError as error:
        raise UserError(f"{sample.where}: utterance {sample.key} of the dev set: {error}") from error


def decode_set(
    opened: Any, samples: Sequence[Sample], lengths: Sequence[int], options: DecodeOptions, output_file: str
) -> list[Fault]:
    """Decode a whole set to files: ``output_file`` (``utt<TAB>text``), the same name with ``.jsonl``, decode.json.

    Batches land in ``<name>.part`` as they come; a second call with the same model, data and options goes on from it.

    Args:
        opened: :class:`speechllm.checkpoint.Opened`.
        lengths: frames of 10 ms of each sample; 0 where the audio's header could not be read.

    Returns:
        the utterances whose audio could not be read; their text is empty.
    """
    base = os.path.splitext(output_file)[0]
    os.makedirs(os.path.dirname(base) or ".", exist_ok=True)
    started = time.monotonic()
    pieced, faults = _in_pieces(opened, samples, lengths, options, f"{base}.audio")
    part = Part(f"{base}.part", fingerprint(opened, pieced, options), len(pieced))
    wanted = np.ones(len(pieced), bool)
    wanted[[*pieced.pieces, *faults]] = False
    left = np.flatnonzero(wanted & (part.places < 0))
    done = int(wanted.sum()) - len(left)
    if done:
        log.info("going on from %s.part: %d of %d are done", base, done, wanted.sum())
    chosen = [left[rows].tolist() for rows in batches(pieced.lengths[left], options.batch_size)]
    with tqdm(total=int(wanted.sum()), initial=done, unit="utt", desc="decode") as bar:
        for some in predict(opened.family, opened.task, opened.model, pieced, options, chosen):
            part.add(some)
            bar.update(len(some))
    seconds, heard = time.monotonic() - started, int(pieced.lengths[left].sum()) / 100
    told, faults = _write(_rows(part, pieced, faults, opened.task), samples, base, output_file)
    told |= {"in_pieces": len(pieced.pieces), "pieces": len(pieced) - len(samples), "model_dir": opened.folder}
    told["task"] = opened.task.name
    timed = {"seconds": round(seconds, 3), "audio_seconds": heard, "rtf": round(seconds / max(heard, 1e-9), 5)}
    write_json(os.path.join(os.path.dirname(base), "decode.json"), timed | told | provenance())
    part.remove()
    shutil.rmtree(f"{base}.audio", ignore_errors=True)
    log.info("%d utterances, %.1f s of audio in %.1f s: RTF %.4f", len(samples), heard, seconds, timed["rtf"])
    if told["truncated"]:
        log.warning("%d answer(s) reached max_new_tokens=%d unfinished", told["truncated"], options.max_new_tokens)
    if told["no_speech"]:
        log.warning(
            "%d recording(s) without speech, as %s hears it; their text is empty", told["no_speech"], options.vad_model
        )
    return faults


def decode_file(opened: Any, path: str, prompt: str, options: DecodeOptions) -> dict:
    """One recording; its row, as in the JSONL of :func:`decode_set`.

    Args:
        prompt: what is asked, as :func:`speechllm.formats.prompts.asked_like` takes it.

    Raises:
        UserError: the audio cannot be used.
    """
    (seconds,) = audio.measure([Clip(path)], options.allow_pipes)
    if isinstance(seconds, audio.AudioError):
        raise UserError(str(seconds))
    key, asked, frames = os.path.basename(path), asked_like(prompt, opened.prompt), speech_length(seconds)
    with tempfile.TemporaryDirectory() as folder:
        faults = decode_set(
            opened, [Sample(key, Clip(path), asked, None, frames, 0, path)], [frames], options, f"{folder}/hyp.txt"
        )
        if faults:
            raise UserError(str(faults[0]))
        with open(f"{folder}/hyp.jsonl", encoding="utf-8") as file:
            return json.loads(file.read())


def _in_pieces(
    opened: Any, samples: Sequence[Sample], lengths: Sequence[int], options: DecodeOptions, folder: str
) -> tuple[Pieced, dict[int, Fault]]:
    """Cut what is longer than ``max_segment``; by index, what cannot be cut because it cannot be read."""
    import torch
    from torch.utils.data import DataLoader

    if not 1 <= options.max_segment <= DAY:
        raise UserError(f"max_segment is {options.max_segment:g} s; give 1 to {DAY}")
    long = np.flatnonzero(np.asarray(lengths) > speech_length(options.max_segment)).tolist()
    if not long or not opened.task.in_pieces:
        return Pieced(samples, lengths, {}), {}
    if options.vad_model:
        find = segments.Vad(options.vad_model, options.hub, options.max_segment)
    else:
        find = segments.QuietPoints(options.max_segment)
    loader = DataLoader(
        Rows(samples, lambda sample, draw: segments.cut(sample.clip, find, folder, options.allow_pipes)),
        sampler=[Draw(i, 0) for i in long],
        batch_size=None,
        collate_fn=lambda clips: clips,
        num_workers=min(options.num_workers, len(long)),
        generator=torch.Generator(),
    )
    found = dict(zip(long, tqdm(loader, total=len(long), unit="file", desc="cut"), strict=True))
    faults = {i: clips for i, clips in found.items() if isinstance(clips, Fault)}
    pieced = Pieced(samples, lengths, {i: clips for i, clips in found.items() if i not in faults})
    log.info(
        "%d recording(s) of more than %g s, in %d pieces", len(long), options.max_segment, len(pieced) - len(samples)
    )
    return pieced, faults


class Part:
    """The rows of a decoding, on disk in the order in which they came; memory holds only where each of them stands.

    A killed decoding leaves the file, and one with the same head goes on from it.

    Args:
        head: what must be the same for a file to be gone on from.
        count: rows that there will be.

    Attributes:
        places: (count,) where each row begins, in bytes; -1 where it is not there yet.
    """

    def __init__(self, path: str, head: dict, count: int):
        self.path, self.places = path, np.full(count, -1, np.int64)
        first, end = json.dumps(head).encode() + b"\n", 0
        self._file = open(path, "r+b" if os.path.exists(path) else "w+b")  # noqa: SIM115
        if self._file.readline() == first:
            end = len(first)
            for line in self._file:
                if line.endswith(b"\n"):  # else it was cut by the kill
                    self.places[json.loads(line)[0]] = end
                    end += len(line)
        self._file.seek(end)
        self._file.truncate()
        if not end:
            self._file.write(first)

    def add(self, rows: list[tuple[int, dict]]) -> None:
        """Append rows, each with its index."""
        self._file.seek(0, os.SEEK_END)
        for index, row in rows:
            self.places[index] = self._file.tell()
            self._file.write(json.dumps([index, row], ensure_ascii=False).encode() + b"\n")
        self._file.flush()

    def __getitem__(self, index: int) -> dict:
        self._file.seek(self.places[index])
        return json.loads(self._file.readline())[1]

    def remove(self) -> None:
        self._file.close()
        os.remove(self.path)


def fingerprint(opened: Any, samples: Sequence[Sample], options: DecodeOptions) -> dict:
    """What must be the same for a part-file to be gone on from; the pieces of long audio count as samples."""
    said = hashlib.sha256()
    for sample in samples:
        said.update(repr((sample.key, sample.clip, sample.prompt, sample.text, sample.language)).encode())
    return {
        "data": said.hexdigest(),
        "model": [opened.folder, opened.stamp],
        "options": {field.name: getattr(options, field.name) for field in fields(AnswerOptions)},
    }


def _rows(part: Part, pieced: Pieced, faults: dict[int, Fault], task: Any) -> Iterator[dict]:
    """One row per utterance, in input order."""
    for i in range(len(pieced.samples)):
        if i in faults:
            yield {"key": faults[i].sample.key, "error": faults[i].reason, "text": ""}
        elif i in pieced.pieces:
            yield _joined(part, pieced, i, task)
        else:
            yield part[i]


def _joined(part: Part, pieced: Pieced, index: int, task: Any) -> dict:
    """One row from those of an utterance's pieces, with their times; where one has an error, that one alone."""
    key, rows = pieced[index].key, [part[i] for i in pieced.pieces[index]]
    for row in rows:
        if "error" in row:
            return row
        del row["key"]
    timed = [pieced.span(index, i) | row for i, row in zip(pieced.pieces[index], rows, strict=True)]
    return {"key": key} | task.join(rows) | {"segments": timed}


def _write(rows: Iterator[dict], samples: Sequence[Sample], base: str, output_file: str) -> tuple[dict, list[Fault]]:
    """Write the rows and their texts; what is to be told about them, and those with an error."""
    told, faults = {"utterances": 0, "errors": 0, "truncated": 0, "no_speech": 0}, []
    with atomic_write(f"{base}.jsonl") as file, atomic_write(output_file) as texts:
        for i, row in enumerate(rows):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            texts.write(f"{row['key']}\t{' '.join(row['text'].split())}\n")
            if "error" in row:
                faults.append(Fault(samples[i], row["error"]))
            told["utterances"] += 1
            told["errors"] += "error" in row
            told["truncated"] += bool(row.get("truncated"))
            told["no_speech"] += row.get("segments") == []
    return told, faults
