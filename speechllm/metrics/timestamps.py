"""Errors of word boundaries, in milliseconds, against gold times.

U utterances; W words of one of them, each with two slots, its start and its end; S slots of all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from speechllm import boundaries
from speechllm.errors import UserError
from speechllm.metrics.alignment import refuse_extra
from speechllm.metrics.bootstrap import ratio_interval
from speechllm.sample import Sample

NEEDED = ("words", "timestamps", "confidences", "classes", "step", "inversions")  # of a row of hyp.jsonl
NAMED = 100  # utterances that are in none of the numbers, named in a score
WITHIN = (20, 50, 100)  # ms
EDGES = (2, 5, 10, 30)  # seconds of audio, between one bucket and the next
BUCKETS = [f"{first}-{last}" for first, last in zip((0, *EDGES), (*EDGES, ""), strict=True)]
RESAMPLES = 9999  # of the permutation test; all sign flips where there are no more


@dataclass(frozen=True)
class Aligned:
    """One utterance with its gold times.

    Args:
        sample: the reference.
        row: of hyp.jsonl.
        errors: (W, 2) ms that the starts and the ends come too late; negative: too early.
    """

    sample: Sample
    row: dict[str, Any]
    errors: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """(W, 2) ms, without sign."""
        return np.abs(self.errors)


def match(references: Mapping[str, Sample], rows: Iterable[dict]) -> tuple[list[Aligned], dict[str, str]]:
    """Pair rows with their references.

    An utterance without times has no boundary that could be off by so many ms, so no number stands for it in the
    score: it is given back with its reason, for the caller to tell.

    Returns:
        the utterances that can be scored, in the order of the references, and by key why the others cannot.

    Raises:
        UserError: a row without a reference or of another task, a reference without times, or numbers of words that
            differ; nothing to score.
    """
    by_key = {row["key"]: row for row in rows}
    refuse_extra(references, by_key)
    found, unscored = [], {}
    for key, sample in references.items():
        row = by_key.get(key)
        if row is None:
            unscored[key] = "no hypothesis"
        elif "error" in row:
            unscored[key] = row["error"]
        else:
            found.append(_aligned(sample, row))
    if not found:
        key, reason = next(iter(unscored.items()), ("", "no reference"))
        raise UserError(f"none of {len(unscored)} utterance(s) can be scored; the first: {key}: {reason}; mend that")
    return found, unscored


def _aligned(sample: Sample, row: dict) -> Aligned:
    where = f"{sample.where}: utterance {sample.key}"
    if sample.spans is None:
        raise UserError(f"{where}: no timestamps in the row; add gold times, or remove it")
    if lacking := [name for name in NEEDED if name not in row]:
        raise UserError(f"{where}: no {', '.join(lacking)} in its row of hyp.jsonl; decode the set with an aligner")
    if len(sample.spans) != len(row["timestamps"]):
        raise UserError(
            f"{where}: {len(row['timestamps'])} words were aligned, {len(sample.spans)} have gold timestamps; the "
            f"words are {row['words']}, the timestamps {[tuple(span) for span in sample.spans]}; give each word its "
            "pair, or decode the text that they belong to"
        )
    late = np.array(row["timestamps"]) - np.array(sample.spans)
    return Aligned(sample, row, np.round(1000 * late, 3))  # so that 420 - 400 is within 20


def score_rows(references: Mapping[str, Sample], rows: Iterable[dict]) -> dict[str, Any]:
    """The numbers of score.json: :func:`match`, then :func:`summary`."""
    return summary(*match(references, rows))


def summary(found: Sequence[Aligned], unscored: Mapping[str, str]) -> dict[str, Any]:
    """The numbers as score.json has them: times in ms, shares in percent.

    Args: as :func:`match` gives them.
    """
    sizes = np.concatenate([utterance.sizes for utterance in found])  # (S / 2, 2)
    times = np.concatenate([utterance.row["timestamps"] for utterance in found])
    sums, slots = _totals(found)
    missing = sum(reason == "no hypothesis" for reason in unscored.values())
    counts = {"utterances": len(found), "words": len(sizes), "missing": missing, "unreadable": len(unscored) - missing}
    inversions = sum(utterance.row["inversions"] for utterance in found)
    seconds = np.array([utterance.sample.speech_length for utterance in found]) / 100
    languages = [utterance.sample.language or "unknown" for utterance in found]
    durations = [BUCKETS[bucket] for bucket in np.digitize(seconds, EDGES)]
    return {
        "metric": "aas",
        "value": _round(sizes.mean()),
        "unit": "ms",
        "ci95": [_round(end) for end in ratio_interval(sums, slots)],
        "counts": counts,
        "start": _round(sizes[:, 0].mean()),
        "end": _round(sizes[:, 1].mean()),
        "median": _round(np.median(sizes)),
        "p90": _round(np.percentile(sizes, 90)),
        "within": {str(limit): _round(100 * (sizes <= limit).mean()) for limit in WITHIN},
        "argmax": _round(np.concatenate([argmax_sizes(utterance) for utterance in found]).mean()),
        "zero_length": _round(100 * (times[:, 1] <= times[:, 0]).mean()),
        "inversions": {"total": inversions, "per_100_slots": _round(100 * inversions / sizes.size)},
        "by_language": _by(languages, sorted(set(languages)), sums, slots),
        "by_duration": _by(durations, BUCKETS, sums, slots),
        "unscored": list(unscored)[:NAMED],
    }


def argmax_sizes(utterance: Aligned) -> np.ndarray:
    """(2W,) ms that the slots would be off, had the same posteriors been decoded as qwen-asr does: argmax, then order
    repair."""
    row = utterance.row
    repaired, _ = boundaries.repair(np.round(np.array(row["classes"]) * row["step"] * 1000))
    return np.abs(repaired - 1000 * np.fromiter(chain.from_iterable(utterance.sample.spans), float))


def _totals(found: Sequence[Aligned]) -> tuple[np.ndarray, np.ndarray]:
    """Per utterance, (U,) the sum of its errors in ms, and (U,) its slots."""
    return np.array([u.sizes.sum() for u in found]), np.array([u.errors.size for u in found])


def _by(labels: Sequence[str], order: Sequence[str], sums: np.ndarray, slots: np.ndarray) -> dict[str, dict]:
    """AAS, utterances and words of each label that occurs: (U,) each."""
    labels, made = np.array(labels), {}
    for label in order:
        if (at := labels == label).any():
            value = _round(sums[at].sum() / slots[at].sum())
            made[label] = {"value": value, "utterances": int(at.sum()), "words": int(slots[at].sum()) // 2}
    return made


def _round(value: float) -> float:
    return round(float(value), 4)


def compare(references: Mapping[str, Sample], before: Iterable[dict], after: Iterable[dict]) -> dict[str, Any]:
    """AAS of two decodings of one set, over the utterances that both have.

    The interval is by bootstrap over utterances, each with both of its results. The p-value is two-sided, by a paired
    permutation test over utterances: were the decodings alike, each utterance's two results could as well be swapped.

    Returns:
        ``before``, ``after``, ``difference`` (after minus before: negative is better), its ``ci95``, all in ms, ``p``,
        and utterances: ``utterances``, ``improved``, ``worsened``, ``equal``, and ``unpaired`` that one of them lacks.

    Raises:
        UserError: as of :func:`match`, or no utterance is in both.
    """
    from scipy.stats import permutation_test

    sides = [{u.sample.key: u for u in match(references, rows)[0]} for rows in (before, after)]
    shared = [key for key in sides[0] if key in sides[1]]
    if not shared:
        raise UserError("no utterance has times in both decodings; compare decodings of the same set")
    (old, slots), (new, _) = (_totals([side[key] for key in shared]) for side in sides)
    change = new - old
    test = permutation_test(
        (old, new),
        lambda first, second, axis: (second - first).sum(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=100,  # or all resamples of all utterances would be held at once
        rng=0,
    )
    return {
        "before": _round(old.sum() / slots.sum()),
        "after": _round(new.sum() / slots.sum()),
        "difference": _round(change.sum() / slots.sum()),
        "ci95": [_round(end) for end in ratio_interval(change, slots)],
        "p": float(test.pvalue),
        "utterances": len(shared),
        "improved": int((change < 0).sum()),
        "worsened": int((change > 0).sum()),
        "equal": int((change == 0).sum()),
        "unpaired": len(references) - len(shared),
    }
