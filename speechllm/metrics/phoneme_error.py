"""Phoneme error rate: alignment by jiwer, so that the counts are jiwer's, and which phonemes are taken for which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from speechllm.metrics.alignment import Counts, ErrorRate, Utterance, refuse_empty, refuse_extra
from speechllm.text import open_normalizer
from speechllm.text.phones import SILENCES

Pairs = list[tuple[str, str]]


def without_silence(symbols: Iterable[str]) -> list[str]:
    """The phonemes that are none of ``sil``, ``h#``, ``pau`` and ``epi``.

    The closures of TIMIT's 61 phones (``bcl``, ``tcl``, ...) belong to their stops and stay; folded to the 39 classes
    they have become ``sil``, and go.
    """
    return [symbol for symbol in symbols if symbol not in SILENCES]


def align(references: Sequence[Sequence[str]], hypotheses: Sequence[Sequence[str]]) -> list[Pairs]:
    """Per utterance, (reference phoneme, hypothesis phoneme) in order; one is empty at a deletion or insertion.

    The alignment has the fewest errors, each counting one, as jiwer and Kaldi's compute-wer do; sclite's, in which a
    substitution costs more than a deletion, can differ.
    """
    import jiwer

    found = jiwer.process_words([" ".join(row) for row in references], [" ".join(row) for row in hypotheses])
    rows = zip(found.references, found.hypotheses, found.alignments, strict=True)
    return [list(_pairs(reference, hypothesis, chunks)) for reference, hypothesis, chunks in rows]


def _pairs(reference: list[str], hypothesis: list[str], chunks: Iterable[Any]) -> Iterator[tuple[str, str]]:
    for chunk in chunks:
        said = reference[chunk.ref_start_idx : chunk.ref_end_idx]
        heard = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
        yield from zip_longest(said, heard, fillvalue="")


def phoneme_error_rate(
    references: Mapping[str, str], hypotheses: Mapping[str, str], ignore_sil: bool = False
) -> ErrorRate:
    """Align sequences of phonemes, parted by white space, by utterance; ``A`` and ``a`` are two phonemes.

    A reference without a hypothesis counts as all deleted; all phonemes beside an empty reference are insertions.

    Args:
        ignore_sil: take silence out of both sides first, as :func:`without_silence` does.

    Raises:
        UserError: a hypothesis without a reference, or no phoneme in any reference.
    """
    refuse_extra(references, hypotheses)
    keep = without_silence if ignore_sil else list
    said = [keep(text.split()) for text in references.values()]
    refuse_empty(sum(map(len, said)), len(said))
    aligned = align(said, [keep(hypotheses.get(key, "").split()) for key in references])
    utterances = [
        Utterance(key, _counts(pairs), pairs, key not in hypotheses)
        for key, pairs in zip(references, aligned, strict=True)
    ]
    total = Counts(*map(sum, zip(*(utterance.counts for utterance in utterances), strict=True)))
    return ErrorRate(utterances, total, {}, "per")


def _counts(pairs: Pairs) -> Counts:
    deleted, inserted = sum(not hyp for _, hyp in pairs), sum(not ref for ref, _ in pairs)
    correct = sum(ref == hyp for ref, hyp in pairs)
    return Counts(correct, len(pairs) - correct - deleted - inserted, deleted, inserted)


def compare_phonemes(
    references: Mapping[str, str], hypotheses: Mapping[str, str], normalizer: str, ignore_sil: bool = False
) -> ErrorRate:
    """:func:`phoneme_error_rate` of answers as they stand in the data; ``normalizer`` is one of ``text.PHONEMES``."""
    rows = open_normalizer(normalizer).rows
    return phoneme_error_rate(rows(references), rows(hypotheses, like=references), ignore_sil)


def rates(result: ErrorRate) -> dict[str, float]:
    """Percent of the reference phonemes: ``accuracy``, 100 - PER, and ``correct``, which insertions do not lower."""
    return {
        "accuracy": round(100 - result.total.percent, 4),
        "correct": round(100 * result.total.correct / result.total.ref_tokens, 4),
    }


def confusions(result: ErrorRate) -> dict[str, list[dict[str, Any]]]:
    """``substitutions``, ``deletions`` and ``insertions``: which phonemes and how often, the most frequent first."""
    found = Counter(pair for utterance in result.utterances for pair in utterance.pairs if pair[0] != pair[1])
    ranked = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return {
        "substitutions": [{"ref": ref, "hyp": hyp, "count": n} for (ref, hyp), n in ranked if ref and hyp],
        "deletions": [{"ref": ref, "count": n} for (ref, hyp), n in ranked if not hyp],
        "insertions": [{"hyp": hyp, "count": n} for (ref, hyp), n in ranked if not ref],
    }


def by_phoneme(result: ErrorRate) -> dict[str, dict[str, Any]]:
    """How each phoneme of either side fared, the most frequent in the references first.

    Returns:
        Per phoneme its ``count`` in the references, of which ``correct``, ``substituted``, ``deleted``; how often it
        was ``heard``, of which ``inserted``; ``recall`` (correct of count) and ``precision`` (correct of heard) in
        percent, None where there is nothing to take a share of.
    """
    pairs = Counter(pair for utterance in result.utterances for pair in utterance.pairs)
    keys = ("count", "correct", "substituted", "deleted", "heard", "inserted")
    table = {symbol: dict.fromkeys(keys, 0) for pair in pairs for symbol in pair if symbol}
    for (ref, hyp), n in pairs.items():
        if ref:
            table[ref]["count"] += n
            table[ref]["correct" if ref == hyp else "substituted" if hyp else "deleted"] += n
        if hyp:
            table[hyp]["heard"] += n
            table[hyp]["inserted"] += 0 if ref else n
    for row in table.values():
        row["recall"], row["precision"] = _share(row["correct"], row["count"]), _share(row["correct"], row["heard"])
    return dict(sorted(table.items(), key=lambda item: (-item[1]["count"], item[0])))


def _share(part: int, whole: int) -> float | None:
    return round(100 * part / whole, 4) if whole else None
