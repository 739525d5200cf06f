"""Word and character error rate: tokens, alignment and counts by compute-wer, so that the numbers are its numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speechllm.errors import UserError
from speechllm.metrics.alignment import Counts, ErrorRate, Utterance, refuse_empty, refuse_extra
from speechllm.metrics.bootstrap import ratio_interval
from speechllm.metrics.phoneme_error import compare_phonemes
from speechllm.text import PHONEMES, open_normalizer


def error_rate(references: Mapping[str, str], hypotheses: Mapping[str, str]) -> ErrorRate:
    """Align normalised texts by utterance.

    A reference without a hypothesis counts as all deleted. An utterance with an empty reference and words in its
    hypothesis counts as wrong in ``ser``, unlike in compute-wer's line; all other numbers are compute-wer's.

    Raises:
        UserError: a hypothesis without a reference, or no token in any reference.
    """
    from compute_wer import Calculator

    refuse_extra(references, hypotheses)
    calculator = Calculator()
    utterances = []
    for key, reference in references.items():
        found = calculator.calculate(reference, hypotheses.get(key, ""))
        # compute-wer pads the tokens to one width for its printout.
        pairs = [(ref.strip(), hyp.strip()) for ref, hyp in zip(found.reference, found.hypothesis, strict=True)]
        utterances.append(Utterance(key, _counts(found), pairs, key not in hypotheses))
    total, clusters = calculator.overall()
    refuse_empty(total.all, len(utterances))
    by_kind = {name: _counts(clusters[name]) for name in sorted(clusters)}
    return ErrorRate(utterances, _counts(total), by_kind, _metric(utterances))


def _metric(utterances: list[Utterance]) -> str:
    """``cer`` where most reference tokens are single characters of a script without spaces, else ``wer``."""
    from compute_wer.utils import is_character_based

    tokens = [ref for utterance in utterances for ref, _ in utterance.pairs if ref]
    return "cer" if 2 * sum(map(is_character_based, (token[0] for token in tokens))) > len(tokens) else "wer"


def _counts(found: Any) -> Counts:
    return Counts(found.equal, found.replace, found.delete, found.insert)


def compare_texts(references: Mapping[str, str], hypotheses: Mapping[str, str], normalizer: str = "mixed") -> ErrorRate:
    """:func:`error_rate` of raw texts, both sides normalised, the hypotheses in the manner of their references.

    With a normaliser of phonemes it is their error rate, by :func:`compare_phonemes`.
    """
    if normalizer in PHONEMES:
        return compare_phonemes(references, hypotheses, normalizer)
    rows = open_normalizer(normalizer).rows
    return error_rate(rows(references), rows(hypotheses, like=references))


def check_summary(path: Path, counts: Mapping[str, int]) -> None:
    """compute-wer's summary, where there is one, must tell the same counts. Raises UserError where it does not."""
    if not path.is_file():
        return
    found = re.findall(
        r"^Overall -> .* N=(\d+) Cor=(\d+) Sub=(\d+) Del=(\d+) Ins=(\d+)$", path.read_text("utf-8"), re.M
    )
    if not found or [int(number) for number in found[-1]] != list(counts.values()):
        raise UserError(
            f"{path}: N Cor Sub Del Ins are {' '.join(found[-1]) if found else 'not there'}, but hyp.txt and the "
            f"reference give {' '.join(map(str, counts.values()))}; the files are out of step: normalise both again "
            "(the hypotheses with ++like=<reference>), then run compute-wer"
        )


def summary(result: ErrorRate, normalizer: str) -> dict[str, Any]:
    """The numbers as score.json has them; rates in percent of the reference tokens or, for ``ser``, of utterances."""
    counts = [utterance.counts for utterance in result.utterances]
    interval = ratio_interval([c.errors for c in counts], [c.ref_tokens for c in counts])
    missing = sum(utterance.missing for utterance in result.utterances)
    made_by = open_normalizer(normalizer)
    clusters = {name: {"value": round(c.percent, 4)} | c.to_dict() for name, c in result.clusters.items()}
    return {
        "metric": result.metric,
        "value": round(result.total.percent, 4),
        "unit": "%",
        "ci95": [round(100 * end, 4) for end in interval],
        "counts": result.total.to_dict() | {"utterances": len(counts), "missing": missing},
        "ser": round(100 * sum(c.errors > 0 for c in counts) / len(counts), 4),
        **({"clusters": clusters} if clusters else {}),
        "normalizer": {"name": made_by.name, "version": made_by.version},
    }


def score_texts(references: Mapping[str, str], hypotheses: Mapping[str, str], normalizer: str = "mixed") -> dict:
    """The score of raw texts by utterance: :func:`compare_texts`, then :func:`summary`."""
    return summary(compare_texts(references, hypotheses, normalizer), normalizer)
