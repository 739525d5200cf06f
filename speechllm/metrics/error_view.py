"""Aligned utterances for the eye: in a terminal and in a report."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from html import escape

from speechllm.metrics.alignment import ErrorRate, Utterance

COLUMNS = 110  # of the terminal, at most, after the label
LABELS = ("  ref:", "  hyp:", "      ")
SHOWN = 500  # utterances in the HTML report, the worst of them


def worst(result: ErrorRate, number: int) -> list[Utterance]:
    """The utterances with the most errors, at most that many, none without an error."""
    wrong = [utterance for utterance in result.utterances if utterance.counts.errors]
    return sorted(wrong, key=lambda utterance: (-utterance.counts.errors, utterance.key))[:number]


def width(text: str) -> int:
    """Columns that a text takes in a terminal: two for a wide character, none for a combining mark."""
    return sum(1 + (unicodedata.east_asian_width(c) in "FW") for c in text if not unicodedata.combining(c))


def _mark(ref: str, hyp: str) -> str:
    return "" if ref == hyp else "S" if ref and hyp else "D" if ref else "I"


def _short(token: str) -> str:
    """A token cut to 40 characters: a model that does not stop can make one of thousands."""
    return token if len(token) <= 40 else f"{token[:37]}..."


def as_text(utterance: Utterance) -> str:
    """The reference above the hypothesis, token under token, with S, D and I under the differences."""
    counts, note = utterance.counts, ", no hypothesis" if utterance.missing else ""
    blocks, used = [["", "", ""]], 0
    for ref, hyp in utterance.pairs:
        cells = (_short(ref or "*"), _short(hyp or "*"), _mark(ref, hyp))
        room = max(map(width, cells)) + 1
        if used and used + room > COLUMNS:
            blocks.append(["", "", ""])
            used = 0
        blocks[-1] = [line + " " * (room - width(cell)) + cell for line, cell in zip(blocks[-1], cells, strict=True)]
        used += room
    lines = [(name + line).rstrip() for block in blocks for name, line in zip(LABELS, block, strict=True)]
    return f"{utterance.key}: {counts.errors} error(s), {counts.ref_tokens} reference token(s){note}\n" + "\n".join(
        lines
    )


def as_html(result: ErrorRate, problems: dict[str, str]) -> str:
    """A table of the utterances with errors, the worst first, each aligned.

    Args:
        problems: by utterance, why it could not be decoded.
    """
    shown = worst(result, SHOWN)
    wrong = sum(utterance.counts.errors > 0 for utterance in result.utterances)
    rows = "\n".join(_row(utterance, problems.get(utterance.key, "")) for utterance in shown)
    more = f"; the {SHOWN} worst are shown" if wrong > SHOWN else ""
    return f"""<h2>Utterances</h2>
<p>{wrong} of {len(result.utterances)} utterances have an error{more}.
Reference above hypothesis: <span class="S"><b>substituted</b></span> <span class="D"><b>deleted</b></span>
<span class="I"><b>inserted</b></span></p>
<table><tr><th>utterance<th>errors<th>tokens<th>aligned</tr>
{rows}
</table>"""


def _row(utterance: Utterance, problem: str) -> str:
    counts = utterance.counts
    problem = problem or ("no hypothesis" if utterance.missing else "")
    note = f'<br><span class="note">{escape(problem)}</span>' if problem else ""
    cells = "".join(_cells(utterance.pairs))
    return f"<tr><td>{escape(utterance.key)}{note}<td>{counts.errors}<td>{counts.ref_tokens}<td>{cells}</tr>"


def _cells(pairs: Iterable[tuple[str, str]]) -> Iterable[str]:
    for ref, hyp in pairs:
        kind = _mark(ref, hyp)
        yield f'<span class="t {kind}"><b>{escape(ref) or "&nbsp;"}</b><i>{escape(hyp) or "&nbsp;"}</i></span>'
