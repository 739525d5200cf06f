"""Praat's TextGrid in its text forms, long and short; the binary one is refused.

Both are read by Praat's own rule (its manual, "TextGrid file formats"): free-standing numbers, texts in double quotes
and flags count, in their order; all else is comment. The number of tiers and intervals is told before they come, so a
file that breaks off is found.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

from speechllm.errors import UserError
from speechllm.formats.times.word import Word, is_pause, read_text

TOKEN = re.compile(r'"((?:[^"]|"")*)"|(?<!\S)!.*|(\S+)')
NUMBER = re.compile(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?")
ALSO = {"words": "word", "phones": "phone"}  # names that tiers have in place of the usual ones


def read(path: str, tier: str = "words") -> list[Word]:
    """The labelled intervals of a tier; empty ones are pauses.

    Args:
        tier: its name, in either case; words finds word too.

    Raises:
        UserError: not a TextGrid, no such interval tier, or two.
    """
    tiers = list(_tiers(path))
    wanted = {tier.casefold(), ALSO.get(tier.casefold())}
    found = [words for kind, name, words in tiers if kind == "IntervalTier" and name.casefold() in wanted]
    if len(found) != 1:
        names = ", ".join(f"{name!r} ({kind})" for kind, name, _ in tiers)
        raise UserError(f"{path}: {len(found)} interval tiers named {tier!r}, there are {names}; give one by ++tier")
    return [word for word in found[0] if not is_pause(word.text)]


def _tiers(path: str) -> Iterator[tuple[str, str, list[Word]]]:
    """Class, name and intervals of each tier; points are passed over."""
    values = _values(read_text(path))

    def take(kind: type):
        if not isinstance(value := next(values, None), kind):
            what = "a number" if kind is float else "a text in quotes"
            raise UserError(f"{path}: breaks off or is damaged: {what} is due, {value!r} comes; save it anew in Praat")
        return value

    if not str(next(values, "")).startswith("ooTextFile") or next(values, "") != "TextGrid":
        raise UserError(f"{path}: not a TextGrid in a text form; in Praat, save it as text file or short text file")
    take(float), take(float)
    for _ in range(int(take(float))):
        kind, name, _, _, count = take(str), take(str), take(float), take(float), int(take(float))
        words = []
        for _ in range(count):
            start, end = take(float), take(float) if kind == "IntervalTier" else 0.0
            words.append(Word(take(str).strip(), start, end))
        yield kind, name, words


def _values(text: str) -> Iterator[str | float]:
    """What counts; ``<exists>``, the one flag there is, is left out."""
    for found in TOKEN.finditer(text):
        if found[1] is not None:
            yield found[1].replace('""', '"')
        elif found[2] and NUMBER.fullmatch(found[2]):
            yield float(found[2])


def write(path: str, words: Sequence[Word], seconds: float) -> None:
    """Tiers ``words`` and, where it is known, ``confidence``, in the long form; the file is not written atomically.

    Args:
        words: in order, none of zero length, which Praat does not know.
        seconds: of the audio.
    """
    tiers = {"words": [word.text for word in words]}
    if all(word.confidence is not None for word in words):
        tiers["confidence"] = [f"{word.confidence:g}" for word in words]
    seconds = max([seconds, *(word.end for word in words)])
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {seconds:.6f}"]
    lines += ["tiers? <exists>", f"size = {len(tiers)}", "item []:"]
    for number, (name, labels) in enumerate(tiers.items(), 1):
        intervals = _filled(words, labels, seconds)
        lines += [f"    item [{number}]:", '        class = "IntervalTier"', f'        name = "{name}"']
        lines += ["        xmin = 0", f"        xmax = {seconds:.6f}", f"        intervals: size = {len(intervals)}"]
        for place, (label, start, end) in enumerate(intervals, 1):
            label = label.replace('"', '""')
            lines += [f"        intervals [{place}]:", f"            xmin = {start}", f"            xmax = {end}"]
            lines += [f'            text = "{label}"']
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


def _filled(words: Sequence[Word], labels: list[str], seconds: float) -> list[tuple[str, str, str]]:
    """Label, start and end of intervals without gaps, as Praat wants them."""
    intervals, last, whole = [], f"{0:.6f}", f"{seconds:.6f}"
    for word, label in zip(words, labels, strict=True):
        start, end = f"{word.start:.6f}", f"{word.end:.6f}"
        if start != last:
            intervals.append(("", last, start))
        intervals.append((label, start, end))
        last = end
    return intervals + ([("", last, whole)] if last != whole else [])
