"""What can be said of an option of another program."""

from __future__ import annotations

from typing import NamedTuple


class Note(NamedTuple):
    """Honoured without doing anything."""

    why: str


class Use(NamedTuple):
    """Honoured by other options; ``{}`` stands for the value."""

    words: str
    last: bool = False  # whatever stands after it on the command line
    unless: str = ""  # words that come with it, where nothing else sets these options
    why: str = ""


class Refuse(NamedTuple):
    mend: str


class Same(NamedTuple):
    """Honoured without doing anything where it has the value of the option ``key``, else refused."""

    key: str
    why: str
    mend: str


Rule = Note | Use | Refuse | Same
