"""References and hypotheses aligned: what every error rate is made of, whatever its tokens are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from speechllm.errors import UserError


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
        clusters: counts by kind of token, ``Chinese``, ``English`` and so on, as compute-wer tells them apart; none of
            phonemes.
        metric: ``wer``, ``cer`` or ``per``.
    """

    utterances: list[Utterance]
    total: Counts
    clusters: dict[str, Counts]
    metric: str


def refuse_extra(references: Mapping, hypotheses: Mapping) -> None:
    """Raise UserError for a hypothesis without a reference; the reverse is counted as missing."""
    if extra := [key for key in hypotheses if key not in references]:
        raise UserError(
            f"{len(extra)} utterance(s) with a hypothesis but no reference, first {extra[0]}; "
            "score with the reference file of the set that was decoded"
        )


def refuse_empty(ref_tokens: int, utterances: int) -> None:
    """Raise UserError where no reference has a token, since there is no rate then."""
    if not ref_tokens:
        raise UserError(f"no token in the {utterances} reference(s), so there is no error rate; check the text file")
