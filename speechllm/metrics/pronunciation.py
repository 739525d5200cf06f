"""Pronunciation against a canonical sequence: what was said of each phoneme, its score, and how well humans agree.

All scores are from 0 to 1; human ones are on any scale on which more is better.
"""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from speechllm.errors import UserError
from speechllm.formats.kaldi import read_table
from speechllm.metrics.alignment import refuse_extra
from speechllm.metrics.phoneme_error import align, without_silence
from speechllm.metrics.phoneme_files import Heard
from speechllm.text import open_normalizer, phones

log = logging.getLogger("speechllm")
SHOWN = {
    "detection": ("precision", "recall", "f1", "mispronounced", "detected", "both", "phonemes"),
    "phone_correlation": ("pearson", "spearman", "pairs"),
    "utterance_correlation": ("pearson", "spearman", "pairs"),
}


class Phone(NamedTuple):
    """A canonical phoneme: what was heard in its place (empty: nothing), and its score."""

    symbol: str
    heard: str
    score: float

    @property
    def result(self) -> str:
        return "correct" if self.heard == self.symbol else "substituted" if self.heard else "deleted"

    def to_dict(self) -> dict[str, Any]:
        return {"phone": self.symbol, "result": self.result, "heard": self.heard, "score": self.score}


@dataclass(frozen=True)
class Assessment:
    """An utterance.

    Args:
        phones: the canonical phonemes, in order, at least one.
        insertions: (phoneme, index of the canonical one before which it was heard; their number: at the end).
        missing: there is no hypothesis for it; all of it counts as deleted.
    """

    key: str
    phones: list[Phone]
    insertions: list[tuple[str, int]]
    missing: bool

    @property
    def score(self) -> float:
        """The mean over the canonical phonemes, to four digits; insertions do not lower it."""
        return round(sum(phone.score for phone in self.phones) / len(self.phones), 4)

    def to_dict(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "score": self.score,
            "missing": self.missing,
            "phones": [phone.to_dict() for phone in self.phones],
            "insertions": [{"phone": phone, "before": index} for phone, index in self.insertions],
        }


def assess(canonical: Mapping[str, str], hypotheses: Mapping[str, Heard]) -> list[Assessment]:
    """Align what was heard with what should have been said, silence taken out of both.

    A phoneme scores its confidence where it was heard (1 if the hypothesis has no confidences), and 0 where another one
    or none was heard.

    Returns:
        One per canonical sequence, in their order.

    Raises:
        UserError: a hypothesis without a canonical sequence, one of these without a phoneme, or confidences that are
            not one from 0 to 1 per phoneme.
    """
    refuse_extra(canonical, hypotheses)
    rows = open_normalizer("phonemes").rows(canonical)
    wanted = {key: without_silence(text.split()) for key, text in rows.items()}
    if empty := [key for key, symbols in wanted.items() if not symbols]:
        raise UserError(f"{empty[0]}: no phoneme in its canonical sequence; add it or remove the line")
    given = [_sounding(key, hypotheses[key]) if key in hypotheses else [] for key in wanted]
    aligned = align(list(wanted.values()), [[symbol for symbol, _ in row] for row in given])
    return [
        _assessment(key, pairs, [confidence for _, confidence in row], key not in hypotheses)
        for key, pairs, row in zip(wanted, aligned, given, strict=True)
    ]


def _sounding(key: str, hypothesis: Heard) -> list[tuple[str, float]]:
    """The phonemes that are not silence, with their confidences; marks have some too."""
    words = phones.words(hypothesis.text)
    confidences = [1.0] * len(words) if hypothesis.confidences is None else hypothesis.confidences
    if len(confidences) != len(words):
        raise UserError(f"{key}: {len(words)} phonemes with {len(confidences)} confidences; decode the set again")
    if not all(isinstance(value, int | float) and 0 <= value <= 1 for value in confidences):
        raise UserError(f"{key}: confidences from 0 to 1 expected, found {confidences}; decode the set again")
    pairs = ((words[i], confidences[i]) for i in phones.heard(words))
    return [pair for pair in pairs if pair[0] not in phones.SILENCES]


def _assessment(key: str, pairs: list[tuple[str, str]], confidences: list[float], missing: bool) -> Assessment:
    wanted, insertions, left = [], [], iter(confidences)
    for symbol, heard in pairs:
        confidence = next(left) if heard else 0.0
        if symbol:
            wanted.append(Phone(symbol, heard, confidence if heard == symbol else 0.0))
        else:
            insertions.append((heard, len(wanted)))
    return Assessment(key, wanted, insertions, missing)


def summary(assessments: Sequence[Assessment]) -> dict[str, Any]:
    """How many utterances and canonical phonemes, what became of them, and the mean score of the utterances."""
    results = Counter(phone.result for row in assessments for phone in row.phones)
    return {
        "utterances": len(assessments),
        "missing": sum(row.missing for row in assessments),
        "phonemes": results.total(),
        **{name: results[name] for name in ("correct", "substituted", "deleted")},
        "inserted": sum(len(row.insertions) for row in assessments),
        "score": round(sum(row.score for row in assessments) / len(assessments), 4),
    }


def read_scores(path: str | os.PathLike, assessments: Sequence[Assessment], per_phone: bool) -> dict[str, list[float]]:
    """Human scores by utterance: ``utt number ...``, one per canonical phoneme that is not silence, or one in all.

    Raises:
        UserError: no row, an utterance that is not assessed, what is no number, or another number of them.
    """
    counts = {row.key: len(row.phones) if per_phone else 1 for row in assessments}
    scores = {}
    for key, (value, where) in read_table(path).items():
        if key not in counts:
            raise UserError(f"{where}: {key}: no canonical sequence; add it, or remove the line")
        try:
            scores[key] = [float(word) for word in value.split()]
            if not all(map(math.isfinite, scores[key])):
                raise ValueError("not finite")
        except ValueError as error:
            raise UserError(f"{where}: {key}: numbers expected, found {value!r}; correct the line") from error
        if len(scores[key]) != counts[key]:
            what = f"{counts[key]} canonical phoneme(s)" if per_phone else "an utterance"
            raise UserError(
                f"{where}: {key}: {len(scores[key])} score(s) for {what}; correct the line or the canonical sequence"
            )
    if not scores:
        raise UserError(f"{os.fspath(path)}: no row in the file; one `utt number ...` per line is expected")
    if absent := [key for key in counts if key not in scores]:
        log.warning("%s: no scores of %d utterance(s), first %s; the others are compared", path, len(absent), absent[0])
    return scores


def detection(assessments: Sequence[Assessment], labels: Mapping[str, list[float]], threshold: float) -> dict[str, Any]:
    """Mispronunciation detection over the phonemes of the labelled utterances; positive is what is mispronounced.

    Detected is what was not heard as it should be; truly mispronounced, what humans score below ``threshold``.

    Returns:
        ``precision``, ``recall`` and ``f1``, None where nothing is detected, nothing mispronounced, or neither; and the
        counts that they come from.
    """
    pairs = [(phone.result != "correct", label < threshold) for phone, label in _labelled(assessments, labels)]
    detected, wrong = (sum(side) for side in zip(*pairs, strict=True))
    both = pairs.count((True, True))
    return {
        "precision": _ratio(both, detected),
        "recall": _ratio(both, wrong),
        "f1": _ratio(2 * both, detected + wrong),
        "threshold": threshold,
        "utterances": len(labels),
        "phonemes": len(pairs),
        "mispronounced": wrong,
        "detected": detected,
        "both": both,
    }


def _labelled(assessments: Sequence[Assessment], labels: Mapping[str, list[float]]) -> list[tuple[Phone, float]]:
    """The phonemes of the labelled utterances, with their labels."""
    rows = (row for row in assessments if row.key in labels)
    return [pair for row in rows for pair in zip(row.phones, labels[row.key], strict=True)]


def _ratio(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def phone_correlation(assessments: Sequence[Assessment], labels: Mapping[str, list[float]]) -> dict[str, Any]:
    """:func:`correlation` of the phonemes' scores with their labels."""
    pairs = _labelled(assessments, labels)
    return correlation([phone.score for phone, _ in pairs], [label for _, label in pairs])


def utterance_correlation(assessments: Sequence[Assessment], scores: Mapping[str, list[float]]) -> dict[str, Any]:
    """:func:`correlation` of the utterances' scores with those that humans gave."""
    rows = [row for row in assessments if row.key in scores]
    return correlation([row.score for row in rows], [scores[row.key][0] for row in rows])


def correlation(ours: Sequence[float], human: Sequence[float]) -> dict[str, Any]:
    """Pearson's and Spearman's coefficient of paired scores; None, and ``undefined`` says why, where there is none."""
    from scipy.stats import pearsonr, spearmanr

    undefined = _undefined(ours, human)
    if undefined:
        return {"pearson": None, "spearman": None, "pairs": len(ours), "undefined": undefined}
    pearson, spearman = pearsonr(ours, human).statistic, spearmanr(ours, human).statistic
    return {"pearson": round(float(pearson), 4), "spearman": round(float(spearman), 4), "pairs": len(ours)}


def _undefined(ours: Sequence[float], human: Sequence[float]) -> str:
    if len(ours) < 2:
        return f"{len(ours)} pair(s) of scores; two at least are needed"
    for name, scores in (("of the model", ours), ("of humans", human)):
        if min(scores) == max(scores):
            return f"all {len(scores)} scores {name} are {scores[0]:g}"
    return ""


def as_text(found: Mapping[str, Any]) -> str:
    """The numbers of :func:`summary` and of what SHOWN names, where it is there; what is undefined says so."""
    counts = ("phonemes", "correct", "substituted", "deleted", "inserted", "missing")
    lines = [
        f"{found['utterances']} utterance(s), mean score {found['score']:.4f}",
        ", ".join(f"{name} {found[name]}" for name in counts),
    ]
    for name, shown in SHOWN.items():
        if name in found:
            values = (f"{key} {'undefined' if found[name][key] is None else found[name][key]}" for key in shown)
            reason = found[name].get("undefined", "")
            lines.append(f"{name.replace('_', ' ')}: {', '.join(values)}" + (f" ({reason})" if reason else ""))
    return "\n".join(lines)
