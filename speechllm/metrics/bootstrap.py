"""How far a score would move with another draw of utterances."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 1000


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float], level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of ``sum(numerators) / sum(denominators)``, utterances drawn with replacement.

    The method of Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation",
    ICASSP 2004: utterances are the units, since the errors inside one are not independent.

    Args:
        numerators, denominators: (U,) one pair per utterance, such as errors and reference tokens.
        level: share of the resamples inside the interval.

    Returns:
        Its lower and upper end, in the unit of the ratio.
    """
    pairs = np.stack([np.asarray(numerators, float), np.asarray(denominators, float)])  # (2, U)
    random, size = np.random.default_rng(seed), pairs.shape[1]
    # One resample at a time: all at once would be U x 1,000 numbers.
    sums = np.array([pairs[:, random.integers(size, size=size)].sum(axis=1) for _ in range(RESAMPLES)])
    sums = sums[sums[:, 1] > 0]  # a draw of empty references alone has no ratio
    low, high = np.quantile(sums[:, 0] / sums[:, 1], [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
