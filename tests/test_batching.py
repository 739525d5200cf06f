"""Batches: within the budget, nothing lost, the same rows however a step is split."""

import numpy as np
import pytest
import torch

from speechllm.batching import Concat, Draw, Pad, Rows, Stack, StepSampler, collate, cut
from speechllm.errors import UserError

LENGTHS = np.random.default_rng(3).integers(20, 900, 501).tolist()


def steps(epoch=0, **other):
    sampler = StepSampler(LENGTHS, **{"budget": 6000, "batch_type": "token"} | other)
    sampler.set_epoch(epoch)
    return list(sampler.steps())


def test_cut_by_hand():
    assert cut([100, 200, 300, 700], 600, "token") == [range(0, 3 - 1), range(2, 3), range(3, 4)]
    assert cut([1, 2, 3, 4, 5], 2, "example") == [range(0, 2), range(2, 4), range(4, 5)]
    assert cut([], 10, "token") == []
    assert cut([0, 0, 7, 7, 9, 20], 21, "token") == [range(0, 3), range(3, 5), range(5, 6)]


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_every_row_once_per_epoch_and_within_the_budget(epoch):
    made = steps(epoch)
    assert sorted(i for rows in made for i in rows) == list(range(501))
    assert all(len(rows) * max(LENGTHS[i] for i in rows) <= 6000 for rows in made)
    # Filled: one more row of the next longer kind would not have fitted into most of them.
    assert np.mean([len(rows) * max(LENGTHS[i] for i in rows) for rows in made]) > 0.85 * 6000


def test_a_row_over_the_budget_is_kept_alone():
    sampler = StepSampler([50, 9000, 60], 6000, "token")
    assert sorted(map(sorted, sampler.steps())) == [[0, 2], [1]]


def test_epochs_are_shuffled_and_reproducible():
    first, second = steps(0), steps(1)
    assert first == steps(0) and first != second
    assert {frozenset(rows) for rows in first} != {frozenset(rows) for rows in second}  # also which rows meet
    assert len(first) == len(second)  # transformers.Trainer reads the length once
    assert steps(0, seed=1) != first
    sizes = [max(LENGTHS[i] for i in rows) for rows in first]
    assert abs(np.corrcoef(sizes, range(len(sizes)))[0, 1]) < 0.3  # neither short to long nor long to short


@pytest.mark.parametrize("batch_type,budget", [("token", 6000), ("example", 16)])
def test_the_same_rows_make_a_step_however_it_is_split(batch_type, budget):
    whole = steps(2, batch_type=batch_type, budget=budget)
    for ranks, accumulation in [(1, 4), (2, 1), (2, 2), (3, 2)]:
        shares = []
        for rank in range(ranks):
            sampler = StepSampler(LENGTHS, budget, batch_type, ranks, rank, accumulation)
            sampler.set_epoch(2)
            batches = list(sampler)
            assert len(batches) == len(sampler) == len(whole) * accumulation
            shares.append([batches[i : i + accumulation] for i in range(0, len(batches), accumulation)])
        for step, rows in enumerate(whole):
            dealt = [draw for share in shares for batch in share[step] for draw in batch]
            assert sorted(draw.index for draw in dealt if draw.counts) == sorted(rows)


def test_a_share_without_rows_is_filled_by_one_that_does_not_count():
    sampler = StepSampler([9, 9], 100, "token", ranks=4, rank=3)
    assert list(sampler) == [[Draw(next(sampler.steps())[0], 0, counts=False)]]


def test_largest_is_the_step_with_the_most_cells():
    sampler = StepSampler([10] * 7 + [100] * 3, 300, "token")
    assert sorted(draw.index for draw in sampler.largest()) == [7, 8, 9]


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(UserError, match="batch_size is 0"):
        StepSampler(LENGTHS, 0, "token")


def test_collate_pads_stacks_and_joins():
    rows = [
        {"ids": torch.tensor([1, 2]), "left": torch.tensor([1, 2]), "one": torch.tensor(5), "all": torch.ones(2, 3)},
        {"ids": torch.tensor([3]), "left": torch.tensor([3]), "one": torch.tensor(6), "all": torch.zeros(1, 3)},
    ]
    batch = collate(rows, {"ids": Pad(9), "left": Pad(0, "left"), "one": Stack(), "all": Concat()})
    assert batch["ids"].tolist() == [[1, 2], [3, 9]]
    assert batch["left"].tolist() == [[1, 2], [0, 3]]
    assert batch["one"].tolist() == [5, 6]
    assert batch["all"].shape == (3, 3)


def test_rows_are_made_in_float32_within_a_model_that_runs_in_bfloat16():
    rows = Rows(["a"], lambda sample, draw: {"x": torch.ones(2, 2) @ torch.ones(2, 2)})
    with torch.autocast("cpu", torch.bfloat16):
        assert rows[Draw(0, 0)]["x"].dtype == torch.float32
