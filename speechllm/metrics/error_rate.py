"""Word and character error rate: tokens, alignment and counts by compute-wer, so that the numbers are its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from speechllm.errors import UserError
from speechllm.metrics.bootstrap import ratio_interval
from speechllm.text import open_normalizer


class Counts(NamedTuple):
    """Tokens that are correct, substituted, deleted and inserted."""

    correct: int
    substituted: int
    deleted: int
    inserted: int

    @property
    def errors(self) -> int:
        return self.substituted + self.deleted + self.inserted

    @property
    def ref_tokens(self) -> int:
        return self.correct + self.substituted + self.deleted

    @property
    def percent(self) -> float:
        return 100 * self.errors / self.ref_tokens

    def to_dict(self) -> dict[str, int]:
        return {"ref_tokens": self.ref_tokens} | dict(zip(("cor", "sub", "del", "ins"), self, strict=True))


@dataclass(frozen=True)
class Utterance:
    """One utterance aligned.

    Args:
        key: its id.
        counts: of its tokens.
        pairs: (reference token, hypothesis token) in order; one of them is empty at a deletion or insertion.
        missing: there is no hypothesis for it; it is scored as an empty one.
    """

    key: str
    counts: Counts
    pairs: list[tuple[str, str]]
    missing: bool


@dataclass(frozen=True)
class ErrorRate:
    """The result of a test set.

    Args:
        utterances: in the order of the references.
        total: counts of all of them.
        clusters: counts by kind of token, ``Chinese``, ``English`` and so on, as compute-wer tells them apart.
    """

    utterances: list[Utterance]
    total: Counts
    clusters: dict[str, Counts]

    @property
    def metric(self) -> str:
        """``cer`` where most reference tokens are single characters of a script without spaces, else ``wer``."""
        from compute_wer.utils import is_character_based

        tokens = [ref for utterance in self.utterances for ref, _ in utterance.pairs if ref]
        return "cer" if 2 * sum(map(is_character_based, (token[0] for token in tokens))) > len(tokens) else "wer"


def error_rate(references: Mapping[str, str], hypotheses: Mapping[str, str]) -> ErrorRate:
    """Align normalised texts by utterance.

    A reference without a hypothesis counts as all deleted. An utterance with an empty reference and words in its
    hypothesis counts as wrong in ``ser``, unlike in compute-wer's line; all other numbers are compute-wer's.

    Raises:
        UserError: a hypothesis without a reference, or no token in any reference.
    """
    from compute_wer import Calculator

    extra = [key for key in hypotheses if key not in references]
    if extra:
        raise UserError(
            f"{len(extra)} utterance(s) with a hypothesis but no reference, first {extra[0]}; "
            "score with the reference file of the set that was decoded"
        )
    calculator = Calculator()
    utterances = []
    for key, reference in references.items():
        found = calculator.calculate(reference, hypotheses.get(key, ""))
        # compute-wer pads the tokens to one width for its printout.
        pairs = [(ref.strip(), hyp.strip()) for ref, hyp in zip(found.reference, found.hypothesis, strict=True)]
        utterances.append(Utterance(key, _counts(found), pairs, key not in hypotheses))
    total, clusters = calculator.overall()
    if not total.all:
        raise UserError(
            f"no token in the {len(utterances)} reference(s), so there is no error rate; check the text file"
        )
    return ErrorRate(utterances, _counts(total), {name: _counts(clusters[name]) for name in sorted(clusters)})


def _counts(found: Any) -> Counts:
    return Counts(found.equal, found.replace, found.delete, found.insert)


def compare_texts(references: Mapping[str, str], hypotheses: Mapping[str, str], normalizer: str = "mixed") -> ErrorRate:
    """:func:`error_rate` of raw texts, both sides normalised, the hypotheses in the manner of their references."""
    rows = open_normalizer(normalizer).rows
    return error_rate(rows(references), rows(hypotheses, like=references))


def summary(result: ErrorRate, normalizer: str) -> dict[str, Any]:
    """The numbers as score.json has them; rates in percent of the reference tokens or, for ``ser``, of utterances."""
    counts = [utterance.counts for utterance in result.utterances]
    interval = ratio_interval([c.errors for c in counts], [c.ref_tokens for c in counts])
    missing = sum(utterance.missing for utterance in result.utterances)
    made_by = open_normalizer(normalizer)
    return {
        "metric": result.metric,
        "value": round(result.total.percent, 4),
        "unit": "%",
        "ci95": [round(100 * end, 4) for end in interval],
        "counts": result.total.to_dict() | {"utterances": len(counts), "missing": missing},
        "ser": round(100 * sum(c.errors > 0 for c in counts) / len(counts), 4),
        "clusters": {name: {"value": round(c.percent, 4)} | c.to_dict() for name, c in result.clusters.items()},
        "normalizer": {"name": made_by.name, "version": made_by.version},
    }


def score_texts(references: Mapping[str, str], hypotheses: Mapping[str, str], normalizer: str = "mixed") -> dict:
    """The score of raw texts by utterance: :func:`compare_texts`, then :func:`summary`."""
    return summary(compare_texts(references, hypotheses, normalizer), normalizer)
