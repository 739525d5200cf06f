"""Order and length of words' times: against transformers' O(n^2) repair, and against every point of a grid."""

import time
from itertools import product

import numpy as np
import pytest

from speechllm.boundaries import SHORTEST, apart, in_order, inversions, repair


def test_repair_gives_what_the_quadratic_original_gives():
    from transformers.models.qwen3_asr.processing_qwen3_asr import _fix_timestamps

    draw = np.random.default_rng(0)
    untouched = 0
    for number in range(2000):
        length, top = int(draw.integers(1, 50)), int(draw.choice([2, 6, 30, 3750]))
        values = draw.integers(0, top, length) * 80
        if number % 2:  # mostly in order, as models are, with some slots thrown far away
            values = np.sort(values)
            thrown = draw.random(length) < 0.2
            values[thrown] = draw.integers(0, top, thrown.sum()) * 80
        fixed, kept = repair(values)
        assert fixed.tolist() == _fix_timestamps(values), values
        assert inversions(fixed) == 0 and (fixed[kept] == values[kept]).all()
        untouched += kept.all()
    assert untouched < 1000


def test_the_longest_that_never_falls_is_the_originals_choice_of_several():
    assert in_order([]) == [] and in_order([3, 3, 3]) == [0, 1, 2]
    assert in_order([5, 1, 6, 2]) == [0, 2]  # the first that reaches the length, over the first that it can follow
    assert repair(np.array([80, 4000, 160, 240]))[0].tolist() == [80, 80, 160, 240]  # the left of two equally near
    assert repair(np.array([0, 900, 800, 80, 90]))[0].tolist() == [0, 0, 80, 80, 90]  # each its nearer one
    assert repair(np.array([0, 990, 980, 970, 400, 401]))[0].tolist() == [0, 100, 200, 300, 400, 401]


def test_repair_takes_no_time_for_an_hour_of_words():
    values = np.random.default_rng(1).integers(0, 3750, 20_000) * 80
    started = time.perf_counter()
    repair(values)
    assert time.perf_counter() - started < 1.0


def cost(times, wanted):
    return ((times - wanted) ** 2).sum(-1)


def check(times, least, longest):
    """What ``apart`` gives keeps its promises."""
    found = apart(np.array(times), least, longest)
    given = min(least, longest / (len(times) // 2))
    assert (np.diff(found) >= -1e-9).all() and found[0] >= -1e-9 and found[-1] <= longest + 1e-9
    assert (found[1::2] - found[::2] >= given - 1e-9).all()
    return found


def test_apart_gives_the_nearest_times_of_all():
    step, least, longest = 0.01, 0.02, 0.1
    points = np.arange(0, longest + 1e-9, step)
    grid = np.array([p for p in product(points, repeat=4) if p[0] + least <= p[1] + 1e-9 <= p[2] + 1e-8])
    grid = grid[grid[:, 2] + least <= grid[:, 3] + 1e-9]
    draw = np.random.default_rng(2)
    for _ in range(300):
        wanted = draw.choice(points, 4) if draw.random() < 0.7 else draw.uniform(-0.05, 0.2, 4)
        found = check(wanted, least, longest)
        best = cost(grid, wanted).min()
        assert cost(found, wanted) <= best + 1e-9  # no point of the grid is nearer


def test_apart_leaves_alone_what_is_fine():
    times = np.array([0.1, 0.3, 0.3, 0.32, 0.5, 1.0])
    assert apart(times, SHORTEST, 1.0) == pytest.approx(times)
    assert apart(np.zeros(0), SHORTEST, 1.0).shape == (0,)
    equal = np.array([0.2, 0.2, 0.2, 0.4])
    assert apart(equal, 0.0, 1.0) == pytest.approx(equal)  # words of no length were asked for


def test_apart_by_hand():
    assert check([0.5, 0.5], 0.02, 1.0) == pytest.approx([0.49, 0.51])
    assert check([0.0, 0.0, 0.0, 0.0], 0.02, 1.0) == pytest.approx([0, 0.02, 0.02, 0.04])
    assert check([2.0, 2.0], 0.02, 1.0) == pytest.approx([0.98, 1.0])
    assert check([0.0] * 20, 0.02, 0.1) == pytest.approx(np.repeat(np.arange(11), 2)[1:-1] * 0.01)  # 10 ms for each
