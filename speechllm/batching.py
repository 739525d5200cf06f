"""Which rows make an optimiser step, and how rows become tensors.

A step's rows are chosen first, under a budget, then dealt over ranks and accumulated parts: the same rows make
the same step however it is split.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

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
    for i, size in enumerate(sizes):
        rows = i - start + 1
        if rows > 1 and (rows * size if batch_type == "token" else rows) > budget:
            batches.append(range(start, i))
            start = i
    if sizes:
        batches.append(range(start, len(sizes)))
    return batches


class StepSampler:
    """Yields this rank's share of every optimiser step, ``accumulation`` lists of Draws per step.

    Rows are sorted by length; rows of nearly the same length (within 5%) are shuffled anew each epoch, and so are the
    steps. The cuts depend only on the lengths, so every epoch and every rank has the same number of batches, which
    transformers.Trainer needs. It has no ``batch_size`` attribute, or accelerate would drop the odd-sized batches.

    Args:
        lengths: size of every row, in frames of 10 ms.
        budget: of one step, over all ranks and accumulated parts; see :func:`cut`.
    """

    def __init__(self, lengths, budget, batch_type, ranks=1, rank=0, accumulation=1, seed=0):
        if budget < 1:
            raise UserError(f"dataset_conf.batch_size is {budget}; it must be at least 1")
        self.lengths, self.ranks, self.rank, self.accumulation = lengths, ranks, rank, accumulation
        self.seed, self.epoch = seed, 0
        order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
        self.groups = _groups(order, lengths)
        ceilings = [lengths[group[-1]] for group in self.groups for _ in group]
        self.cuts = cut(ceilings, budget, batch_type)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.cuts) * self.accumulation

    def steps(self) -> list[list[int]]:
        """The rows of every step of this epoch, over all ranks, in order."""
        draw = random.Random(f"{self.seed} {self.epoch}")
        order = [i for group in self.groups for i in draw.sample(group, len(group))]
        steps = [order[rows.start : rows.stop] for rows in self.cuts]
        draw.shuffle(steps)
        return steps

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
        rows = max(self.steps(), key=lambda rows: len(rows) * max(self.lengths[i] for i in rows))
        return self.share(rows, 0)


def _groups(order: list[int], lengths: Sequence[int]) -> list[list[int]]:
    groups: list[list[int]] = []
    for i in order:
        if not groups or lengths[i] > 1.05 * lengths[groups[-1][0]]:
            groups.append([])
        groups[-1].append(i)
    return groups


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
        sample = self.samples[draw.index]
        try:
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
