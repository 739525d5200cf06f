"""Confused phonemes for the eye: in a terminal and in a report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

CONFUSIONS = 10  # that are printed, of each kind
PHONEMES = 20  # that are printed, those with the most errors
COLUMNS = ("phoneme", "count", "correct", "substituted", "deleted", "inserted", "recall", "precision")


def as_text(
    score: Mapping[str, Any], confusions: Mapping[str, list[dict]], phonemes: Mapping[str, Mapping[str, Any]]
) -> str:
    """The counts, the most frequent confusions and the phonemes with the most errors; what is left out is counted."""
    names = {"ref_tokens": "N", "cor": "Cor", "sub": "Sub", "del": "Del", "ins": "Ins"}  # as compute-wer writes them
    counts = " ".join(f"{name}={score['counts'][key]}" for key, name in names.items())
    parts = [f"{counts}; accuracy {score['accuracy']:.2f} %, correct {score['correct']:.2f} %"]
    for kind, found in confusions.items():
        more = f" and {len(found) - CONFUSIONS} more" if len(found) > CONFUSIONS else ""
        parts.append(f"{kind}: " + (", ".join(map(_confusion, found[:CONFUSIONS])) or "none") + more)
    chosen = sorted(phonemes, key=lambda symbol: (-_errors(phonemes[symbol]), symbol))[:PHONEMES]
    rows = [COLUMNS, *(_cells(symbol, phonemes[symbol]) for symbol in chosen)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        parts.append("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    if len(phonemes) > PHONEMES:
        parts.append(f"the {PHONEMES} of {len(phonemes)} phonemes with the most errors")
    return "\n".join(parts)


def as_html(confusions: Mapping[str, list[dict]], phonemes: Mapping[str, Mapping[str, Any]]) -> str:
    """All of them, as tables."""
    kinds = "".join(
        f"<tr><th>{escape(kind)}<td>{escape(', '.join(map(_confusion, found)) or 'none')}</tr>\n"
        for kind, found in confusions.items()
    )
    rows = "\n".join(_html_row(_cells(symbol, row), "td") for symbol, row in phonemes.items())
    return f"""<h2>Confusions</h2>
<table>{kinds}</table>
<h2>Phonemes</h2>
<table>{_html_row(COLUMNS, "th")}
{rows}</table>"""


def _html_row(cells: Iterable[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}" for cell in cells) + "</tr>"


def _confusion(found: Mapping[str, Any]) -> str:
    return f"{' > '.join(found[side] for side in ('ref', 'hyp') if side in found)} {found['count']}"


def _errors(row: Mapping[str, Any]) -> int:
    return row["substituted"] + row["deleted"] + row["inserted"]


def _cells(symbol: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    shares = ("-" if row[name] is None else f"{row[name]:.1f}" for name in COLUMNS[-2:])
    return (symbol, *(str(row[name]) for name in COLUMNS[1:-2]), *shares)
