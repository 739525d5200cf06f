"""Synthetic speech with the times of its words and phonemes: espeak-ng through the library of espeakng-loader.

The library keeps state between calls: the same text and voice gives other samples the second time, and only the same
calls in the same order in a fresh process repeat them. So a corpus is cut into fixed shards, each of which runs in a
process of its own (:func:`in_fresh_processes`), and comes out the same whatever the number of workers.
"""

from __future__ import annotations

import ctypes
import functools
import multiprocessing
import re
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import espeakng_loader
import numpy as np

from speechllm.errors import UserError

PAUSE = "sil"
TOKEN = re.compile(r"[\u4e00-\u9fff]|[A-Za-z0-9]+(?:[.'][A-Za-z0-9]+)*")
# Before a word it keeps espeak-ng from speaking two words as one of its dictionary ("on the", "for a", 今天), which
# would have one time only. It is not spoken, and the text positions of the events count it.
ZERO_WIDTH_SPACE = "\u200b"

# What a name carries beside the phoneme: stress before it; after it the variant that the rules of a word choose (@2 of
# "the", r- between two words). Its own mnemonics are used since in IPA pauses have no name, and glides and the shortest
# vowels have none either.
STRESS = "',=%"
VARIANT = re.compile(r"(?<=\D)\d$|(?<=[@rn])-$")
GLIDE = ";"

# From espeak-ng/speak_lib.h
SYNCHRONOUS, PHONEME_EVENTS = 2, 1
RATE, PITCH = 1, 3
CHARACTERS, UTF8 = 1, 1
LAST, WORD, PHONEME = 0, 1, 7


class Event(ctypes.Structure):
    """``espeak_EVENT``: what happens at which sample of the speech."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),  # characters, from 1
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # milliseconds
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("name", ctypes.c_char * 8),
    )


class Span(NamedTuple):
    """A word, phoneme or pause, in seconds from the start of the audio."""

    label: str
    start: float
    end: float


class Speech(NamedTuple):
    """One spoken text.

    Attributes:
        samples: (N,) int16.
        rate: samples per second.
        words: one span per token of the text (see :func:`tokens`), from its first phoneme's onset to the onset of the
            phoneme or pause after its last one.
        phones: phonemes (espeak-ng's mnemonics without stress and variants; capitals matter) and pauses (``sil``),
            without gaps from 0 to the end. espeak-ng reports onsets only, so the closure before a stop belongs to the
            sound before it; and an l that it speaks together with the vowel before it has no length of its own.
    """

    samples: np.ndarray
    rate: int
    words: list[Span]
    phones: list[Span]


def tokens(text: str) -> list[str]:
    """The words that get times: each Chinese character, each run of Latin letters or digits; no punctuation."""
    return TOKEN.findall(text)


class Espeak:
    """The library, once per process."""

    def __init__(self):
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        self._blocks: list[np.ndarray] = []
        self._events: list[tuple[int, int, int, str]] = []
        signature = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(Event))
        self._callback = signature(self._receive)  # kept: the library holds a bare pointer to it
        data = espeakng_loader.get_data_path().encode()
        self.rate = self._library.espeak_Initialize(SYNCHRONOUS, 0, data, PHONEME_EVENTS)
        if self.rate <= 0:
            raise UserError(f"espeak-ng cannot read its data in {data.decode()}; install espeakng-loader again")
        self._library.espeak_SetSynthCallback(self._callback)
        self._library.espeak_ng_SetRandSeed(
            ctypes.c_long(1)
        )  # by itself the breath of +f2, +f3, +f5 hangs on the clock

    def say(self, text: str, voice: str, words_per_minute: int = 175, pitch: int = 50) -> Speech:
        """Speak ``text``.

        Args:
            voice: language and variant, such as ``en-us+f1`` or ``cmn+m2``; ``en`` is British.
            words_per_minute: 80 to 450.
            pitch: 0 to 99; 50 is the voice's own.

        Raises:
            UserError: no such voice, or a word of the text for which espeak-ng reports no phoneme.
        """
        self._choose(voice)
        self._library.espeak_SetParameter(RATE, words_per_minute, 0)
        self._library.espeak_SetParameter(PITCH, pitch, 0)
        self._blocks, self._events = [], []
        marked = TOKEN.sub(ZERO_WIDTH_SPACE + r"\g<0>", text)
        data = marked.encode()
        self._library.espeak_Synth(data, ctypes.c_size_t(len(data) + 1), 0, CHARACTERS, 0, UTF8, None, None)
        self._library.espeak_Synchronize()
        samples = np.concatenate([np.zeros(0, np.int16), *self._blocks])
        phones, owners = _phones(self._events, [match.start() for match in TOKEN.finditer(marked)], len(samples))
        phones = [Span(label, start / self.rate, end / self.rate) for label, start, end in phones]
        return Speech(samples, self.rate, _words(text, voice, phones, owners), phones)

    def _choose(self, voice: str) -> None:
        _, plus, variant = voice.partition("+")
        variants = Path(espeakng_loader.get_data_path(), "voices", "!v")
        # The library takes any variant, and speaks one that it does not know as the plain voice
        if self._library.espeak_SetVoiceByName(voice.encode()) or (plus and not (variants / variant).is_file()):
            raise UserError(f"espeak-ng has no voice {voice}; take en, en-us or cmn, with +f1..f5 or +m1..m8")

    def _receive(self, block, count: int, events) -> int:
        if block and count:
            self._blocks.append(np.ctypeslib.as_array(block, (count,)).copy())
        index = 0
        while events[index].type != LAST:
            event = events[index]
            name = event.name.decode("utf-8", "replace") if event.type == PHONEME else ""
            self._events.append((event.type, event.text_position, event.sample, name))
            index += 1
        return 0


def _phones(events: list, word_starts: list[int], total: int) -> tuple[list[tuple[str, int, int]], list[int]]:
    """Labels with first sample and end, and for each the index of its token, -1 for a pause."""
    onsets = [(PAUSE, 0, -1)]
    owner = -1
    for kind, position, sample, name in events:
        if kind == WORD:
            # Several events may fall into one token, such as i and Phone in iPhone
            owner = int(np.searchsorted(word_starts, position - 1, side="right")) - 1
        elif kind == PHONEME and name.startswith(("_", "(")):  # (en) and (cmn) mark a change of language
            onsets.append((PAUSE, sample, -1))
        elif kind == PHONEME and name != GLIDE:  # which belongs to the vowel that it ends
            onsets.append((VARIANT.sub("", name.lstrip(STRESS)), sample, owner))
    kept = [now for last, now in pairwise([("", 0, 0), *onsets]) if now[0] != PAUSE or last[0] != PAUSE]
    spans = [
        (label, start, end, owner)
        for (label, start, owner), (_, end, _) in pairwise([*kept, ("", total, 0)])
        if label != PAUSE or end > start
    ]
    return [span[:3] for span in spans], [span[3] for span in spans]


def _words(text: str, voice: str, phones: list[Span], owners: list[int]) -> list[Span]:
    words = []
    for index, token in enumerate(tokens(text)):
        own = [phone for phone, owner in zip(phones, owners, strict=True) if owner == index]
        if not own:
            raise UserError(f"{text!r}: espeak-ng ({voice}) speaks no phoneme of {token!r}; reword the phrase")
        words.append(Span(token, own[0].start, own[-1].end))
    return words


def in_fresh_processes(function: Callable[[Any], Any], shards: Iterable, workers: int) -> Iterator:
    """``function(shard)`` for each shard, each in a new process, ``workers`` at a time; results in order.

    Raises:
        UserError: a process died; what ``function`` raises.
    """
    pool = ThreadPoolExecutor(workers)
    try:
        yield from pool.map(functools.partial(_in_fresh_process, function), shards)
    finally:
        pool.shutdown(cancel_futures=True)


def _in_fresh_process(function: Callable[[Any], Any], shard: Any) -> Any:
    context = multiprocessing.get_context("spawn")
    # Ctrl-C reaches the whole group: the parent stops, the shard in work ends by itself within a second
    ignore = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_IGN)}
    with ProcessPoolExecutor(1, context, **ignore) as pool:
        try:
            return pool.submit(function, shard).result()
        except BrokenProcessPool as error:
            raise UserError("a process that speaks died, perhaps for want of memory; run the stage again") from error
