"""From a row of data to a batch to train on: the one way, which the trainer and the doctor share."""

from __future__ import annotations

from typing import Any

from speechllm import audio
from speechllm.augment import Augmenter
from speechllm.batching import Draw, Fault, collate
from speechllm.config import RunConfig
from speechllm.errors import UserError
from speechllm.sample import Sample


class Examples:
    """Makes rows and batches for a run.

    Args:
        config: the run, for its data options and its seed.
        family, task: what makes the tensors of a row.
    """

    def __init__(self, config: RunConfig, family: Any, task: Any):
        self.family, self.task, self.allow_pipes = family, task, config.dataset_conf.allow_pipes
        self.augmenter = Augmenter(config.dataset_conf, config.train_conf.seed, family.rate)

    def example(self, sample: Sample, draw: Draw) -> dict:
        """One row: its tensors, id, frames of 10 ms, and whether it counts (a row that fills an empty share does not).

        Raises:
            UserError: the audio cannot be used, or the row cannot be learnt from.
        """
        augment = self.augmenter.draw(draw.epoch, sample.key)
        wave = audio.read(sample.clip, self.family.rate, self.allow_pipes)
        row = self.task.example(self.family, sample, augment.wave(wave), augment)
        return {"row": row, "key": sample.key, "frames": sample.speech_length, "counts": draw.counts}

    def collate(self, rows: list) -> dict | UserError:
        """A batch, or the faults of its rows.

        Returns:
            ``inputs``, the tensors; ``counts``, the denominators of the loss; ``keys``, the ids; ``size``, (3,): rows,
            frames, frames with padding.
        """
        import torch

        faults = [str(row) for row in rows if isinstance(row, Fault)]
        if faults:
            return UserError("; ".join(faults))
        batch = collate([row["row"] for row in rows], self.family.fields(generating=False))
        frames = [row["frames"] for row in rows]
        size = torch.tensor([len(rows), sum(frames), len(rows) * max(frames)])
        if not rows[0]["counts"]:  # the one row of an otherwise empty share
            self.task.silence(batch)
            size.zero_()
        keys = [row["key"] for row in rows]
        return {"inputs": batch, "keys": keys, "counts": self.task.counts(batch), "size": size}
