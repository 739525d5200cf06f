"""Tables joined by id on disk: memory does not grow with them, and their lines may stand in any order."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from speechllm.errors import UserError
from speechllm.sample import Clip

CACHE = 4096  # KiB of the database that stay in memory
TABLES = ("scp", "segments", "text", "utt2spk", "hotwords", "prompt")
COLUMNS = "key TEXT, value TEXT, place TEXT, fault TEXT, start REAL, stop REAL"
# Where SQLite could choose which table to walk, CROSS JOIN makes it the left one: rows come in its order, unsorted.
CLIPS = {
    "scp": "SELECT number, key, value AS source, start, stop, place FROM scp",
    "segments": "SELECT cut.number, cut.key, whole.value AS source, cut.start, cut.stop, cut.place "
    "FROM segments AS cut CROSS JOIN scp AS whole ON whole.key = cut.value",
}
UTTERANCES = (
    "SELECT clips.number, clips.key, source, clips.start, clips.stop, text.value, clips.place, "
    "ifnull(speaker.value, ''), ifnull(said.value, ''), ifnull(asked.value, '') "
    "FROM clips CROSS JOIN text ON text.key = clips.key LEFT JOIN utt2spk AS speaker ON speaker.key = clips.key "
    "LEFT JOIN hotwords AS said ON said.key = clips.key LEFT JOIN prompt AS asked ON asked.key = clips.key"
)


class Line(NamedTuple):
    """One line of a table, or one member of a shard.

    Args:
        value: what stands beside the id; of segments, the recording.
        place: ``file:line`` or ``shard:member``, for messages.
        fault: what is wrong with it; such a line only keeps its id from standing again.
        start, stop: seconds, of segments.
    """

    key: str
    value: str
    place: str
    fault: str = ""
    start: float = 0.0
    stop: float | None = None


class Utterance(NamedTuple):
    """One utterance that has both audio and words.

    ``speaker``, ``hotwords`` and ``prompt`` (a Prompt, as a JSON list) are empty where no table gives them.
    """

    key: str
    source: str
    start: float
    end: float | None
    text: str
    where: str
    speaker: str = ""
    hotwords: str = ""
    prompt: str = ""

    @property
    def clip(self) -> Clip:
        return Clip(self.source, self.start, self.end)


@contextlib.contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise UserError(f"no room for a temporary index ({error}); set TMPDIR to a folder with more") from error


class Index:
    """The tables of TABLES, empty at first, in a temporary database that is gone with the process, killed or not."""

    def __init__(self):
        self._db = sqlite3.connect("", isolation_level=None)  # "": a file that has no name from the start
        for pragma in (f"cache_size=-{CACHE}", "temp_store=FILE", "journal_mode=OFF", "synchronous=OFF"):
            self._db.execute(f"PRAGMA {pragma}")
        for name in TABLES:
            self._db.execute(f"CREATE TABLE {name}(number INTEGER PRIMARY KEY, {COLUMNS})")

    def load(self, name: str, lines: Iterable[Line]) -> None:
        """Add lines to a table; to be followed by :meth:`finish`.

        Raises:
            UserError: no room for the temporary file.
        """
        with _room():
            self._db.execute("BEGIN")
            self._db.executemany(
                f"INSERT INTO {name}(key, value, place, fault, start, stop) VALUES (?, ?, ?, ?, ?, ?)", lines
            )
            self._db.execute("COMMIT")

    def finish(self, name: str, again: str, on_fault: Callable[[str, str, str], None]) -> None:
        """Tell of a table's faults in the order of its lines, and remove those lines.

        Args:
            again: what to say of an id that stands a second time; ``{place}`` is that of the first, ``{line}`` its end.
        """
        with _room():
            self._db.execute(f"CREATE INDEX {name}_key ON {name}(key)")
        first = f"SELECT key, min(number) AS number FROM {name} GROUP BY key HAVING count(*) > 1"
        twice = self._db.execute(
            f"SELECT first.place, later.number FROM ({first}) AS found JOIN {name} AS first USING (number) "
            f"JOIN {name} AS later ON later.key = found.key AND later.number > found.number"
        ).fetchall()
        marks = [(again.format(place=place, line=place.rpartition(":")[2]), number) for place, number in twice]
        self._db.executemany(f"UPDATE {name} SET fault = ? WHERE number = ?", marks)
        faults = self._db.execute(f"SELECT key, place, fault FROM {name} WHERE fault != '' ORDER BY number").fetchall()
        self._db.execute(f"DELETE FROM {name} WHERE fault != ''")
        for fault in faults:
            on_fault(*fault)

    def join(self, listed: str) -> None:
        """Make the views ``clips`` and ``utterances``, which are clips with text, in the order of scp or segments."""
        if listed == "segments":
            self._db.execute("CREATE INDEX segments_value ON segments(value)")
        self._db.execute(f"CREATE VIEW clips AS {CLIPS[listed]}")
        self._db.execute(f"CREATE VIEW utterances AS {UTTERANCES}")

    def lacking(self, name: str, other: str, column: str = "key", same: str = "key") -> list[tuple[str, str, str]]:
        """``(key, place, column)`` of a table or view's rows whose ``column`` no row of the other has as ``same``."""
        return self._db.execute(
            f"SELECT key, place, {column} FROM {name} AS one WHERE NOT EXISTS "
            f"(SELECT 1 FROM {other} AS other WHERE other.{same} = one.{column}) ORDER BY number"
        ).fetchall()

    def __iter__(self) -> Iterator[Utterance]:
        """The utterances that :meth:`join` made, in order."""
        for row in self._db.execute("SELECT * FROM utterances ORDER BY number"):
            yield Utterance(*row[1:])

    def __len__(self) -> int:
        (count,) = self._db.execute("SELECT count(*) FROM utterances").fetchone()
        return count
