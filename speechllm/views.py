"""A decoded set scored and made visible, as its task has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from speechllm import report
from speechllm.errors import UserError
from speechllm.formats.jsonl import JsonlFile
from speechllm.metrics import error_rate, error_view, timestamps, timestamps_view
from speechllm.text.rows import read_rows

WORST = 10  # utterances that are printed


class View(NamedTuple):
    """What :func:`speechllm.report.publish` takes, and what the terminal shows."""

    score: dict[str, Any]
    body: str
    lines: list[str]
    """The worst utterances, the worst of them last."""
    without: str
    """How utterances without a result are treated."""


def view(folder: Path, ref: str, normalizer: str, baseline: str) -> View:
    """Score a decoding.

    Args:
        folder: of the decoding; its decode.json tells the task, and where it does not, it is texts.
        ref: the references, in the form that the task has.
        normalizer: of texts, as :func:`speechllm.metrics.error_rate.compare_texts` takes it.
        baseline: of an alignment, the folder of another decoding to compare with, or empty.

    Raises:
        UserError: a task that is not scored here, or files that do not fit.
    """
    task = report.read_json(folder / "decode.json", {}).get("task", "sft")
    if task not in VIEWS:
        raise UserError(f"{folder}: a decoding of task {task}; what is scored here is {', '.join(VIEWS)}")
    return VIEWS[task](folder, ref, normalizer, baseline)


def texts(folder: Path, ref: str, normalizer: str, baseline: str) -> View:
    if baseline:
        raise UserError(f"a baseline is for alignments, and {folder} has texts; leave it out")
    result = error_rate.compare_texts(read_rows(ref), read_rows(folder / "hyp.txt"), normalizer)
    error_rate.check_summary(folder / "cer.txt", result.total.to_dict())
    problems = report.unreadable(folder / "hyp.jsonl")
    score = error_rate.summary(result, normalizer)
    score["counts"]["unreadable"] = len(problems)
    lines = [error_view.as_text(utterance) for utterance in reversed(error_view.worst(result, WORST))]
    return View(score, error_view.as_html(result, problems), lines, "scored as empty")


def alignment(folder: Path, ref: str, normalizer: str, baseline: str) -> View:
    references = {sample.key: sample for sample in JsonlFile(ref)}
    rows = list(report.hypotheses(folder / "hyp.jsonl"))
    found, unscored = timestamps.match(references, rows)
    score = timestamps.summary(found, unscored)
    if baseline:
        before = report.hypotheses(Path(baseline) / "hyp.jsonl")
        score["comparison"] = {"baseline": baseline} | timestamps.compare(references, before, rows)
    lines = [timestamps_view.as_text(utterance) for utterance in reversed(timestamps_view.worst(found)[:WORST])]
    without = f"in none of the numbers; of all such the first is {next(iter(unscored), '')}"
    return View(score, timestamps_view.as_html(found, unscored), lines, without)


VIEWS = {"sft": texts, "alignment": alignment}
