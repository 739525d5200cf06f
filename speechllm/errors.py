"""What goes wrong because of an input: one clear message each, and nothing left out silently."""

from __future__ import annotations

import logging
import os

from speechllm.files import atomic_write

log = logging.getLogger("speechllm")
SHOWN = 10  # rows that are named on the screen; all are in the file


class UserError(Exception):
    """A fault in the input that the user can mend; the message names it and ends with the mend."""


class Rejects:
    """The rows that were left out, each with its reason, and the limit on their number.

    Args:
        path: the reasons file, one ``key<TAB>where<TAB>reason`` per row; removed when nothing was left out.
        max_bad: more rows than this are a failure.
    """

    def __init__(self, path: str | os.PathLike, max_bad: int = 0):
        self.path, self.max_bad, self.rows = os.fspath(path), max_bad, []

    def add(self, key: str, where: str, reason: str) -> None:
        self.rows.append((key, where, reason))
        if len(self.rows) <= SHOWN:
            log.warning("left out: %s (%s): %s", key, where, reason)

    def close(self) -> None:
        """Write the reasons file. Raises UserError when more than ``max_bad`` rows were left out."""
        if not self.rows:
            if os.path.exists(self.path):
                os.remove(self.path)
            return
        with atomic_write(self.path) as file:
            for row in self.rows:
                file.write("\t".join(" ".join(str(cell).split()) for cell in row) + "\n")
        if len(self.rows) > SHOWN:
            log.warning("left out: %d more, all in %s", len(self.rows) - SHOWN, self.path)
        if len(self.rows) > self.max_bad:
            key, where, reason = self.rows[0]
            raise UserError(
                f"{len(self.rows)} bad row(s), {self.max_bad} allowed; the first: {key} ({where}): {reason}. "
                f"All reasons are in {self.path}: mend those rows, or allow them with ++max_bad={len(self.rows)}"
            )
