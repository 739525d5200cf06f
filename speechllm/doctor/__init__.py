"""Preflight checks: a few rows of a run through the real collator, model and loss, before hours are spent on it.

Nothing is trained and nothing written. What is looked at is what the run would use: its rows, its weights as they are
frozen and given LoRA, its precision. No family and no task is known by name.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any, NamedTuple

from speechllm.config import RunConfig
from speechllm.doctor import checks
from speechllm.doctor.checks import FAIL, IGNORED, NOTE, Finding
from speechllm.doctor.patient import Patient, Row
from speechllm.errors import UserError

REPEATED = 3  # tokens of one kind in a row that are written out


class Report(NamedTuple):
    """What was looked at, as lines of text, and what was found."""

    rows: list[str]
    findings: list[Finding]

    @property
    def failed(self) -> list[Finding]:
        return [found for found in self.findings if found.verdict == FAIL]

    def __str__(self) -> str:
        lines = [f"  {found.verdict:<6}{found.check:<20}{found.told}" for found in self.findings]
        judged = sum(found.verdict != NOTE for found in self.findings)
        end = f"{len(self.failed)} of {judged} checks failed" if self.failed else f"all {judged} checks passed"
        return "\n".join(["rows", *self.rows, "checks", *lines, end])


def examine(config: RunConfig) -> Report:
    """Look at a run before it is started.

    Raises:
        UserError: what would keep the run from starting.
    """
    if not config.train_data_set_list:
        raise UserError("train_data_set_list is not set; give a JSONL made by tools/scp2jsonl.py")
    patient, findings = Patient(config), []
    for check in checks.ALL:
        findings += check(patient)
        if not patient.rows or any(found.verdict == FAIL and found.check in checks.DECISIVE for found in findings):
            findings.append(Finding(NOTE, "all others", "not checked: what failed decides them"))
            break
    return Report([line for row in patient.rows for line in described(patient, row)], findings)


def described(patient: Patient, row: Row) -> list[str]:
    """What the model is given in a row, and what it learns there."""
    lines = [f"  {row.key}: {row.seconds:.2f} s as it is heard, {row.sample.speech_length} frames of 10 ms in the data"]
    if patient.generates:
        ids, labels = (row.heard["row"][name] for name in ("input_ids", "labels"))
        lines[0] += f", {len(ids)} positions, {row.places} of them audio"
        lines.append(f"    is asked  {asked(patient.family, ids[labels == IGNORED].tolist())}")
        lines.append(f"    learns    {one_line(checks.shown(patient.family, row.learnt))}")
    return lines


def asked(family: Any, ids: list[int]) -> str:
    """The prompt as text on one line; a token that fills a stretch of it, as the audio's does, is written once."""
    runs = [(token, len(list(run))) for token, run in groupby(ids)]
    text = ""
    for long, some in groupby(runs, key=lambda run: run[1] > REPEATED):
        if long:
            text += "".join(f"{family.tokenizer.decode([token])} x {count} " for token, count in some)
        else:
            text += family.tokenizer.decode([token for token, count in some for _ in range(count)])
    return one_line(text)


def one_line(text: str) -> str:
    return text.replace("\n", "\\n")
