"""Batched decoding: longest first, rows back in input order, the same for every task and family."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm import tqdm

from speechllm import audio
from speechllm.batching import Draw, Fault, Rows, collate, cut
from speechllm.config import DecodeOptions, RunConfig
from speechllm.errors import UserError
from speechllm.files import atomic_write, write_json
from speechllm.provenance import provenance
from speechllm.sample import Sample

log = logging.getLogger("speechllm")


def batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices in batches under the budget, the longest first, so that memory is at its peak at once."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    return [[order[i] for i in rows] for rows in reversed(cut([lengths[i] for i in order], budget, "token"))]


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

    def join(items: list) -> tuple[list, dict | None]:
        good = [item for item in items if not isinstance(item, Fault)]
        return items, collate(good, family.fields(generating=True)) if good else None

    loader = DataLoader(
        Rows(samples, query),
        batch_sampler=[[Draw(i, 0) for i in rows] for rows in chosen],
        collate_fn=join,
        num_workers=min(options.num_workers, len(chosen)),
        generator=torch.Generator(),  # or the loader would draw from the trainer's random state
    )
    device = next(model.parameters()).device
    model.eval()
    for rows, (items, batch) in zip(chosen, loader, strict=True):
        with torch.inference_mode():
            moved = {name: tensor.to(device) for name, tensor in batch.items()} if batch else {}
            made = iter(task.predict(family, model, moved, options) if batch else [])
        found = ({"error": item.reason, "text": ""} if isinstance(item, Fault) else next(made) for item in items)
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
    references = {sample.key: sample.text for sample in dev}
    unknown = [key for key, text in references.items() if text is None]
    if unknown:
        raise UserError(f"{len(unknown)} utterance(s) of the dev set have no assistant message, first {unknown[0]}")
    return task.score(references, rows, config)


def decode_set(
    opened: Any, samples: Sequence[Sample], lengths: Sequence[int], options: DecodeOptions, output_file: str
) -> list[dict]:
    """Decode a whole set to files: ``output_file`` (``utt<TAB>text``), the same name with ``.jsonl``, decode.json.

    Batches land in ``<name>.part`` as they come; a second call with the same model, data and options goes on from it.

    Args:
        opened: :class:`speechllm.checkpoint.Opened`.
        lengths: frames of 10 ms of each sample; 0 where the audio's header could not be read.

    Returns:
        the rows in input order, with ``error`` where the audio could not be read (their text is empty).
    """
    base = os.path.splitext(output_file)[0]
    os.makedirs(os.path.dirname(base) or ".", exist_ok=True)
    head = _fingerprint(opened, samples, options)
    done = _read_part(f"{base}.part", head)
    if done:
        log.info("going on from %s.part: %d of %d utterances are done", base, len(done), len(samples))
    left = [[i for i in rows if i not in done] for rows in batches(lengths, options.batch_size)]
    left = [rows for rows in left if rows]
    started, heard = time.monotonic(), sum(lengths[i] for rows in left for i in rows) / 100
    with open(f"{base}.part", "a", encoding="utf-8") as part, tqdm(total=len(samples), initial=len(done)) as bar:
        bar.unit, bar.desc = "utt", "decode"
        if part.tell() == 0:
            part.write(json.dumps(head) + "\n")
        for some in predict(opened.family, opened.task, opened.model, samples, options, left):
            part.writelines(json.dumps([i, row], ensure_ascii=False) + "\n" for i, row in some)
            part.flush()
            done.update(some)
            bar.update(len(some))
    seconds = time.monotonic() - started
    rows = [done[i] for i in range(len(samples))]
    _write(rows, base, output_file)
    told = {"seconds": round(seconds, 3), "audio_seconds": heard, "rtf": round(seconds / max(heard, 1e-9), 5)}
    told |= {"utterances": len(rows), "errors": sum("error" in row for row in rows)}
    told |= {"truncated": sum(bool(row.get("truncated")) for row in rows), "model_dir": opened.family.folder}
    write_json(os.path.join(os.path.dirname(base), "decode.json"), told | provenance())
    os.remove(f"{base}.part")
    log.info("%d utterances, %.1f s of audio in %.1f s: RTF %.4f", len(rows), heard, seconds, told["rtf"])
    if told["truncated"]:
        log.warning("%d answer(s) reached max_new_tokens=%d unfinished", told["truncated"], options.max_new_tokens)
    return rows


def _write(rows: list[dict], base: str, output_file: str) -> None:
    with atomic_write(f"{base}.jsonl") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with atomic_write(output_file) as file:
        file.writelines(f"{row['key']}\t{' '.join(row['text'].split())}\n" for row in rows)


def _fingerprint(opened: Any, samples: Sequence[Sample], options: DecodeOptions) -> dict:
    """What must be the same for a part-file to be gone on from."""
    said = [(sample.key, sample.clip, sample.prompt) for sample in samples]
    return {
        "data": hashlib.sha256(repr(said).encode()).hexdigest(),
        "model": [opened.family.folder, opened.stamp],
        "max_new_tokens": options.max_new_tokens,
    }


def _read_part(path: str, head: dict) -> dict[int, dict]:
    """The rows of a killed decoding; none, and the file removed, where it was made otherwise."""
    if not os.path.isfile(path):
        return {}
    with open(path, encoding="utf-8") as file:
        lines = file.read().split("\n")
    complete = lines[:-1]  # a line without its end was cut by the kill
    if not complete or json.loads(complete[0]) != head:
        os.remove(path)
        return {}
    with atomic_write(path) as file:
        file.writelines(line + "\n" for line in complete)
    return dict(json.loads(line) for line in complete[1:])
