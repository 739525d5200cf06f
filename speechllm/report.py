"""score.json, RESULTS.md and the HTML page of a decoded set, the same for every task.

A task brings its own numbers (``metric``, ``value``, ``unit``, ``ci95``, ``counts``, ``normalizer``, and what else it
has) and its own view of the rows; here they get their provenance and their place.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from html import escape
from itertools import takewhile
from pathlib import Path
from typing import Any

from speechllm import provenance
from speechllm.errors import UserError
from speechllm.files import atomic_write, write_json

log = logging.getLogger("speechllm")

DECODED = ("seconds", "audio_seconds", "rtf")
COLUMNS = ("run", "set", "metric", "value", "95%", "utts", "commit", "machine", "command")
STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:72em;padding:0 1em;color:#222}
h1{font-size:1.2em}.value{font-size:2.2em;font-weight:600}table{border-collapse:collapse;margin:1em 0}
th,td{text-align:left;vertical-align:top;padding:.3em .7em;border-bottom:1px solid #ddd}code{word-break:break-all}
.note{color:#a00;font-size:.9em}.t{display:inline-flex;flex-direction:column;margin-right:.35em}
.t i{font-style:normal;color:#777}.t b{font-weight:400}
.S i,.S>b{background:#fe9;color:#222}.D b{background:#fbb}.I i,.I>b:only-child{background:#bdf;color:#222}"""


def read_json(path: Path, default: Any) -> Any:
    """A JSON file, or the default where there is none. Raises UserError for a file that is not JSON."""
    if not path.is_file():
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}; decode the set again") from error


def hypotheses(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of hyp.jsonl. Raises UserError for a line that is not a row, or without the file."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the folder that tools/decode.py wrote")
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                row["key"].split()
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{path}:{number}: not a row of hyp.jsonl: {error}; decode the set again") from error
            yield row


def unreadable(path: Path) -> dict[str, str]:
    """From hyp.jsonl, if it is there, by utterance, why it could not be decoded. Raises UserError as above."""
    rows = hypotheses(path) if path.is_file() else ()
    return {row["key"]: row["error"] for row in rows if row.get("error")}


def place(decode_dir: str | os.PathLike) -> tuple[str, str]:
    """Run and set of ``exp/<run>/decode_<set>``."""
    folder = Path(decode_dir).resolve()
    return folder.parent.name, folder.name.removeprefix("decode_")


def with_provenance(score: dict[str, Any], decode_dir: str | os.PathLike) -> dict[str, Any]:
    """The score with the checkpoint, the command and the cost from the decoder's decode.json; null without one."""
    decoded = read_json(Path(decode_dir) / "decode.json", {})
    return score | {
        "checkpoint": decoded.get("model_dir"),
        "commit": provenance.commit(),
        "command": decoded.get("command") or provenance.command(),
        "machine": decoded.get("machine") or provenance.machine(),
        **{key: decoded.get(key) for key in DECODED},
    }


def publish(decode_dir: str | os.PathLike, score: dict[str, Any], body: str, results: str, name: str = "") -> None:
    """Write score.json and report.html into ``decode_dir``, and the row of the run and set into ``results``.

    Args:
        score: the task's own numbers.
        body: HTML of the task's own view of the rows.
        results: the Markdown table.
        name: of the run there; by default the folder above ``decode_dir``.
    """
    run, set_name = place(decode_dir)
    run = name or run
    score = with_provenance(score, decode_dir)
    write_json(Path(decode_dir) / "score.json", score)
    with atomic_write(Path(decode_dir) / "report.html") as file:
        file.write(page(run, set_name, score, body))
    add_result(results, run, set_name, score)
    log.info("%s %s: %s", run, set_name, headline(score))
    log.info("%s: score.json, report.html; row in %s", decode_dir, results)


def headline(score: dict[str, Any]) -> str:
    """Such as ``WER 3.21 % (95%: 2.50 to 4.02)``, and, where it was asked for, the comparison with another decoding."""
    low, high = score["ci95"]
    text = f"{score['metric'].upper()} {score['value']:.2f} {score['unit']} (95%: {low:.2f} to {high:.2f})"
    if other := score.get("comparison"):
        low, high = other["ci95"]
        text += f"; before {other['before']:.2f}, difference {other['difference']:+.2f}"
        text += f" (95%: {low:+.2f} to {high:+.2f}), p {other['p']:.2g}"
    return text


def add_result(path: str | os.PathLike, run: str, set_name: str, score: dict[str, Any]) -> None:
    """Put the row of this run and set into a Markdown table, in place of its earlier row; all else in it stays."""
    low, high = score["ci95"]
    value, interval = f"{score['value']:.2f} {score['unit']}", f"{low:.2f} to {high:.2f}"
    facts = (score["counts"]["utterances"], score["commit"] or "", score["machine"], f"`{score['command']}`")
    row = _line(run, set_name, score["metric"].upper(), value, interval, *facts)
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        lines = ["# Results", ""]
    table, start = _line(*COLUMNS), _line(run, set_name)
    if table not in lines:
        lines += [*([""] if lines and lines[-1] else []), table, "|" + "---|" * len(COLUMNS)]
    first = lines.index(table) + 2
    rows = list(takewhile(lambda line: line.startswith("|"), lines[first:]))
    at = next((i for i, line in enumerate(rows) if line.startswith(start)), len(rows))
    lines[first : first + len(rows)] = [*rows[:at], row, *rows[at + 1 :]]
    with atomic_write(path) as file:
        file.write("\n".join(lines) + "\n")


def _line(*cells: object) -> str:
    return "| " + " | ".join(" ".join(str(cell).split()).replace("|", "\\|") for cell in cells) + " |"


def page(run: str, set_name: str, score: dict[str, Any], body: str) -> str:
    """One self-contained HTML page: the headline, the numbers, then the task's own ``body``."""
    facts = {key: value for key, value in score.items() if key not in ("metric", "value", "unit", "ci95")}
    rows = "\n".join(f"<tr><th>{escape(key)}<td>{_cell(value)}</tr>" for key, value in facts.items())
    title = escape(f"{run}: {set_name}")
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style></head><body>
<h1>{title}</h1><p class="value">{escape(headline(score))}</p>
<table>{rows}</table>
{body}
</body></html>
"""


def _cell(value: Any, separator: str = "<br>") -> str:
    if isinstance(value, dict):
        return separator.join(f"{escape(str(key))}: {_cell(part, ', ')}" for key, part in value.items())
    return "" if value is None else f"<code>{escape(str(value))}</code>"
