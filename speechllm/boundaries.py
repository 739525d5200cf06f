"""From the times that a model gave to the slots of an utterance, to spans of words in order.

A slot is the start or the end of a word; an utterance of W words has 2W, start and end in turn.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import groupby

import numpy as np

SNAPPED = 2  # outliers in a row that take a neighbour's value; more are spread between the neighbours
SHORTEST = 0.02  # seconds of a word, where none may have zero length


def inversions(values: np.ndarray) -> int:
    """How many slots lie before their predecessor."""
    return int((np.diff(values) < 0).sum())


def in_order(values: list[float]) -> list[int]:
    """Indices of the longest subsequence that never falls, in O(n log n).

    Of several, the one that the O(n^2) search of qwen-asr finds: it ends at the first index that reaches that length,
    and each index goes back to the first one that it can follow.
    """
    tails: list[float] = []  # of each length, the lowest value that ends such a subsequence
    ends: list[list[int]] = []  # of each length, the indices that end one: as they rise, their values fall
    before: list[int] = []
    for index, value in enumerate(values):
        length = bisect_right(tails, value)
        if length == len(tails):
            tails.append(value)
            ends.append([])
        tails[length] = value
        ends[length].append(index)
        shorter = ends[length - 1] if length else []
        before.append(shorter[bisect_left(shorter, -value, key=lambda i: -values[i])] if shorter else -1)
    found, index = [], ends[-1][0] if ends else -1
    while index >= 0:
        found.append(index)
        index = before[index]
    return found[::-1]


def repair(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values in order, as qwen-asr's ``fix_timestamp`` makes them, and which of them were kept as they were.

    What is not in the longest subsequence that never falls is an outlier. Up to two in a row take the value of the
    nearer neighbour that was kept; more are spread evenly between the two neighbours.

    Args:
        values: (n,) milliseconds, in whole numbers.

    Returns:
        (n,) whole numbers, (n,) bool.
    """
    kept = np.zeros(len(values), bool)
    kept[in_order(values.tolist())] = True
    fixed, good = values.astype(np.float64), np.flatnonzero(kept)
    for _, run in groupby(np.flatnonzero(~kept), key=lambda index: np.searchsorted(good, index)):
        block = list(run)
        after = np.searchsorted(good, block[0])
        left = values[good[after - 1]] if after else None
        right = values[good[after]] if after < len(good) else None
        for place, index in enumerate(block, 1):
            if left is None or right is None:
                fixed[index] = right if left is None else left
            elif len(block) <= SNAPPED:
                fixed[index] = left if place <= len(block) + 1 - place else right
            else:
                fixed[index] = left + (right - left) / (len(block) + 1) * place
    return np.trunc(fixed), kept


def apart(times: np.ndarray, least: float, longest: float) -> np.ndarray:
    """The nearest times (in squares) at which every word lasts ``least`` and none begins before the one before it ends.

    With each word's part of ``least`` taken off, that is isotonic regression, cut off at both ends of the audio.

    Args:
        times: (2W,) seconds.
        least: seconds; less where the audio is too short for so many words.
        longest: seconds of the audio.
    """
    from scipy.optimize import isotonic_regression

    least = min(least, longest / max(len(times) // 2, 1))
    taken = least * ((np.arange(len(times)) + 1) // 2)
    room = longest - (taken[-1] if len(taken) else 0.0)
    return np.clip(isotonic_regression(times - taken).x, 0.0, room) + taken
