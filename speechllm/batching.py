"""Which rows make an optimiser step, and how rows become tensors.

A step's rows are chosen first, under a budget, then dealt over ranks and accumulated parts: the same rows make
the same step however it is split.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from speechllm.errors import UserError
from speechllm.sample import Sample


class Pad(NamedTuple):
    """A tensor that grows along its first axis: padded with ``value`` to the longest of the batch."""

    value: float
    side: str = "right"


class Stack(NamedTuple):
    """A tensor of the same shape in every row."""


class Concat(NamedTuple):
    """A tensor that is joined along its first axis, without padding."""


class Draw(NamedTuple):
    """One row as the sampler hands it to the dataset."""

    index: int
    epoch: int
    counts: bool = True  # False: fills an empty share, and bears no loss


def cut(sizes: Sequence[int], budget: int, batch_type: str) -> list[range]:
    """Cut rows sorted by size into batches: longest times rows within the budget, or that many rows.

    A row that is larger than the budget makes a batch of its own.
    """
    batches, start = [], 0
    while start < len(sizes):

        def cost(stop: int, start: int = start) -> int:
            return (stop - start) * (int(sizes[stop - 1]) if batch_type == "token" else 1)

        # So many would fit if none were longer than the first.
        most = budget // max(int(sizes[start]), 1) if batch_type == "token" else budget
        stops = range(start + 1, min(start + most, len(sizes)) + 1)
        batches.append(range(start, start + max(bisect_right(stops, budget, key=cost), 1)))
        start = batches[-1].stop
    return batches


class StepSampler:
    """Yields this rank's share of every optimiser step, ``accumulation`` lists of Draws per step.

    Rows are sorted by length; rows of nearly the same length (within 5%) are shuffled anew each epoch, and so are the
    steps. The cuts depend only on the lengths, so every epoch and every rank has the same number of batches, which
    transformers.Trainer needs. It has no ``batch_size`` attribute, or accelerate would drop the odd-sized batches.

    Args:
        lengths: (rows,) size of every row, in frames of 10 ms plus tokens.
        budget: of one step, over all ranks and accumulated parts; see :func:`cut`.
    """

    def __init__(self, lengths, budget, batch_type, ranks=1, rank=0, accumulation=1, seed=0):
        if budget < 1:
            raise UserError(f"dataset_conf.batch_size is {budget}; it must be at least 1")
        self.lengths, self.ranks, self.rank, self.accumulation = np.asarray(lengths), ranks, rank, accumulation
        self.seed, self.epoch = seed, 0
        self.order = np.argsort(self.lengths, kind="stable")
        ordered = self.lengths[self.order]
        self.groups = _groups(ordered)
        ceilings = np.repeat(ordered[self.groups[1:] - 1], np.diff(self.groups))
        self.bounds = np.array([0, *(rows.stop for rows in cut(ceilings, budget, batch_type))])

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return (len(self.bounds) - 1) * self.accumulation

    def _shuffled(self) -> tuple[np.ndarray, np.random.Generator]:
        """(rows,) by group, each group shuffled, before they are cut into steps; and the epoch's generator."""
        draw, rows = np.random.default_rng([self.seed, self.epoch]), self.order.copy()
        for start, stop in pairwise(self.groups):
            draw.shuffle(rows[start:stop])
        return rows, draw

    def steps(self) -> Iterator[list[int]]:
        """The rows of every step of this epoch, over all ranks, in order."""
        rows, draw = self._shuffled()
        for step in draw.permutation(len(self.bounds) - 1):
            yield rows[self.bounds[step] : self.bounds[step + 1]].tolist()

    def share(self, rows: list[int], micro: int) -> list[Draw]:
        """The rows of one step that this rank takes in its ``micro``-th part; never empty."""
        mine = rows[micro * self.ranks + self.rank :: self.ranks * self.accumulation]
        return [Draw(i, self.epoch) for i in mine] or [Draw(rows[0], self.epoch, counts=False)]

    def __iter__(self) -> Iterator[list[Draw]]:
        for rows in self.steps():
            for micro in range(self.accumulation):
                yield self.share(rows, micro)

    def largest(self) -> list[Draw]:
        """This rank's part of the step with the most cells (rows times longest), for the dry run before step 1."""
        rows, _ = self._shuffled()
        longest = np.maximum.reduceat(self.lengths[rows], self.bounds[:-1])
        step = (longest * np.diff(self.bounds)).argmax()
        return self.share(rows[self.bounds[step] : self.bounds[step + 1]].tolist(), 0)


def _groups(ordered: np.ndarray) -> np.ndarray:
    """Where each group of rows of nearly the same length starts, and where the last one stops; (groups + 1,)."""
    bounds = [0]
    while bounds[-1] < len(ordered):
        bounds.append(np.searchsorted(ordered, ordered[bounds[-1]] * 21 // 20, side="right"))
    return np.array(bounds)


class Fault(NamedTuple):
    """What a row becomes that cannot be used: raised in a loader's process, its reason would drown in a traceback."""

    sample: Sample
    reason: str

    def __str__(self) -> str:
        return f"utterance {self.sample.key} ({self.sample.where}): {self.reason}"


class Rows:
    """The map-style dataset behind the loader: a Draw in, ``{name: tensor}`` or a Fault out.

    Args:
        samples: Samples by index.
        example: ``(sample, draw) -> {name: tensor}``.
    """

    def __init__(self, samples: Sequence, example: Callable):
        self.samples, self.example = samples, example

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, draw: Draw):
        import torch

        sample = self.samples[draw.index]
        try:
            with torch.autocast("cpu", enabled=False):  # a loader forked within a model's autocast inherits it
                return self.example(sample, draw)
        except UserError as error:
            return Fault(sample, str(error))


def collate(rows: list[dict], fields: dict) -> dict:
    """Join rows into a batch as each tensor's declaration says.

    Args:
        rows: one ``{name: tensor}`` per row.
        fields: ``{name: Pad | Stack | Concat}``, as the family declares them; every name must be declared.

    Returns:
        ``{name: tensor}``: padded (B, longest, ...), stacked (B, ...) or joined (sum of lengths, ...).
    """
    return {name: _join([row[name] for row in rows], fields[name]) for name in rows[0]}


def _join(tensors: list, field: Pad | Stack | Concat):
    import torch

    if isinstance(field, Stack):
        return torch.stack(tensors)
    if isinstance(field, Concat):
        return torch.cat(tensors)
    longest = max(len(tensor) for tensor in tensors)
    joined = tensors[0].new_full((len(tensors), longest, *tensors[0].shape[1:]), field.value)
    for row, tensor in zip(joined, tensors, strict=True):
        place = row[longest - len(tensor) :] if field.side == "left" else row[: len(tensor)]
        place.copy_(tensor)
    return joined
