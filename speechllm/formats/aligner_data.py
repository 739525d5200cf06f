"""Audio, texts and files of times to the rows of forced alignment: every word gets its time, or a reason is given."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from speechllm import audio
from speechllm.errors import UserError
from speechllm.files import atomic_write
from speechllm.formats import build
from speechllm.formats.aligner import check_spans, to_row
from speechllm.formats.index import Utterance
from speechllm.formats.kaldi import Fault
from speechllm.formats.times import ctm, srt, textgrid, timit
from speechllm.formats.times.word import Word, read_text
from speechllm.sample import Prompt, Sample, Span, speech_length
from speechllm.text.words import split

log = logging.getLogger("speechllm")
AUDIO = {".wav", ".flac", ".mp3", ".ogg"}
TEXT = ".txt"
ROUNDED = 0.01  # s that a word may end after the audio, or overlap its neighbour, as times are rounded


class Times(NamedTuple):
    """Where an utterance's times are: a file or, of a CTM of many utterances, its lines."""

    path: str
    place: ctm.Place | None = None

    def __str__(self) -> str:
        return f"{self.path}:{self.place.line}" if self.place else self.path


class Rules(NamedTuple):
    """How the words of texts and times come together; the options of tools/prepare_aligner_data.py."""

    language: str
    tier: str
    share: bool
    overlap: float

    def endings(self) -> set[str]:
        """Of the files that hold times; TIMIT has a file per tier."""
        return {".textgrid", ".ctm", ".srt", ".phn" if self.tier.startswith("phone") else ".wrd"}


class Found(NamedTuple):
    """The utterances of two folders, in the order of their ids.

    Args:
        utterances: their texts are empty; see ``texts``.
        texts: path of the ``.txt``, by id.
        times: by id.
        left: path and reason of each file that belongs to none.
    """

    utterances: list[Utterance]
    texts: dict[str, str]
    times: dict[str, Times]
    left: list[tuple[str, str]]


def find(audio_dir: str, text_dir: str, rules: Rules, timed: Mapping[str, Times], on_fault: Fault) -> Found:
    """Pair files whose paths within their folders are the same but for the ending; that is the id, blanks as ``_``.

    Faults: audio with neither text nor times, either without audio, and two files of one kind.

    Args:
        timed: times that are known otherwise, by id.

    Raises:
        UserError: no such folder.
    """
    left: list[tuple[str, str]] = []
    sounds = _listed(audio_dir, AUDIO, left)
    said = _listed(text_dir, {TEXT} | rules.endings(), left)
    if os.path.realpath(audio_dir) == os.path.realpath(text_dir):
        used = {os.path.realpath(path) for paths in [*sounds.values(), *said.values()] for path in paths}
        left = [entry for entry in dict(left).items() if os.path.realpath(entry[0]) not in used]
    found = Found([], {}, {}, left)
    for key in sorted(sounds.keys() | said.keys()):
        paths = sounds.get(key, [])
        texts = [path for path in said.get(key, []) if path.lower().endswith(TEXT)]
        times = [Times(path) for path in said.get(key, []) if path not in texts]
        times += [timed[key]] if key in timed else []
        places = [*paths, *texts, *(one.path for one in times)]
        if not paths:
            on_fault(key, places[0], f"no audio ({', '.join(sorted(AUDIO))}) of this name in {audio_dir}; add it")
        elif not texts and not times:
            endings = ", ".join(sorted({TEXT} | rules.endings()))
            on_fault(key, places[0], f"neither text nor times ({endings}) of this name in {text_dir}; add it")
        elif max(len(paths), len(texts), len(times)) > 1:
            on_fault(key, places[0], f"several files of one kind: {', '.join(places)}; leave one of each")
        else:
            found.utterances.append(Utterance(key, paths[0], 0.0, None, "", paths[0]))
            found.texts.update((key, path) for path in texts)
            found.times.update((key, one) for one in times)
    return found


def _listed(folder: str, endings: set[str], left: list[tuple[str, str]]) -> dict[str, list[str]]:
    """Files by id; ``left`` takes those with other endings."""
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: no such folder; give the folder of the files")
    found = defaultdict(list)
    for parent, _, names in os.walk(folder, followlinks=True):
        for name in sorted(names):
            path = os.path.join(parent, name)
            stem, ending = os.path.splitext(os.path.relpath(path, folder))
            if ending.lower() in endings and not name.startswith("."):
                found["_".join(stem.split())].append(path)
            else:
                left.append((path, f"none of {', '.join(sorted(endings))}"))
    return found


def read_ctm(path: str, on_fault: Fault) -> dict[str, Times]:
    """Where the times of each of a CTM's utterances are."""
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file; give a CTM, `utterance channel start duration word` per line")
    return {key: Times(path, place) for key, place in ctm.places(path, on_fault).items()}


def unused(timed: Mapping[str, Times], utterances: Iterable[Utterance], known: set[str], on_fault: Fault) -> None:
    """Tell of a CTM's utterances that there are not; ids in ``known`` are spared."""
    for key in sorted(timed.keys() - {one.key for one in utterances} - known):
        on_fault(key, str(timed[key]), "times of an utterance without audio and text; remove or correct its id")


def fingerprint(files: Sequence[str], utterances: Any, *options: Any) -> str:
    """What must be the same for a half-made file to be gone on from."""
    return hashlib.sha256(repr(build.made_of(files, utterances, *options)).encode()).hexdigest()


def row_maker(
    texts: Mapping[str, str], times: Mapping[str, Times], ctm_file: str, rules: Rules, allow_pipes: bool, mended: Any
) -> Callable[[list[Utterance]], list[bytes]]:
    """A function that gives the part-file's lines (see :mod:`speechllm.formats.build`) of a few utterances.

    Args:
        texts: paths of the texts of utterances that bring none.
        times: by id.
        ctm_file: where the times of all utterances should be; empty: an utterance may have none.
        mended: a multiprocessing.Value, which counts the times that were mended.

    Raises:
        UserError: the package that finds the language's words is not installed.
    """
    split("", rules.language)  # loads what the processes then share
    encode = json.JSONEncoder(ensure_ascii=False).encode

    def make(utterances: list[Utterance]) -> list[bytes]:
        lines = []
        for one, seconds in zip(utterances, audio.measure([one.clip for one in utterances], allow_pipes), strict=True):
            try:
                if isinstance(seconds, audio.AudioError):
                    raise seconds
                if ctm_file and one.key not in times:
                    raise UserError(f"{ctm_file} has no times of it; add them, or leave the utterance out")
                sample, count = _sample(one, seconds, texts.get(one.key, ""), times.get(one.key), rules)
            except UserError as error:
                lines.append(f"! {json.dumps([one.key, one.where, str(error)])}\n".encode())
                continue
            if count:
                with mended.get_lock():
                    mended.value += count
            lines.append(f"{seconds:.6f} {encode(to_row(sample))}\n".encode())
        return lines

    return make


def _sample(one: Utterance, seconds: float, text_path: str, times: Times | None, rules: Rules) -> tuple[Sample, int]:
    """The utterance, and how many of its times were mended."""
    text, spans, mended = one.text, None, 0
    if text_path:
        text = read_text(text_path)
        from_timit = times is not None and times.path.lower().endswith((".wrd", ".phn"))
        text = " ".join((timit.sentence(text) if from_timit else text).split())
    if (text_path or text) and not split(text, rules.language):
        raise UserError(f"{text_path or one.where}: no word in the text {text!r}; write it, or leave the audio out")
    if times:
        text, words = matched(_read(times, rules.tier), text, rules, str(times))
        spans, mended = mend(words, seconds, rules.overlap)
        try:
            check_spans(spans, seconds + 1e-5)  # the times are rounded, the seconds are not
        except ValueError as error:
            raise UserError(f"{times}: {error}; correct the times (++overlap=SECONDS mends small overlaps)") from error
    length = speech_length(seconds)
    return Sample(one.key, one.clip, Prompt(), text, length, len(text), one.where, spans, rules.language), mended


def _read(times: Times, tier: str) -> list[Word]:
    match os.path.splitext(times.path)[1].lower():
        case ".textgrid":
            return textgrid.read(times.path, tier)
        case ".srt":
            return srt.read(times.path)
        case ".wrd" | ".phn":
            return timit.read(times.path)
        case _:
            return ctm.read(times.path, times.place)


def matched(timed: list[Word], text: str, rules: Rules, where: str) -> tuple[str, list[Word]]:
    """The text, and one timed word for each of its words; without a text, it is made of the timed words.

    Raises:
        UserError: the words are not the same, case and punctuation aside, or several of them have one time.
    """
    words = [part for word in timed for part in parted(word, rules, where)]
    text = text or " ".join(word.text for word in timed if split(word.text, rules.language))
    said, heard = split(text, rules.language), [word.text for word in words]
    lists = f"the text's words are {said}, those with times {heard}; make them the same"
    if not words:
        raise UserError(f"{where}: no word in it, and the text has {said}; add the times")
    if len(said) != len(heard):
        raise UserError(f"{where}: {len(said)} words in the text, {len(heard)} with times; {lists}")
    for number, (one, other) in enumerate(zip(said, heard, strict=True), 1):
        if _form(one) != _form(other):
            raise UserError(f"{where}: word {number} is {one!r} in the text, {other!r} in the times; {lists}")
    return text, words


def _form(word: str) -> str:
    return "".join(char for char in unicodedata.normalize("NFKC", word).casefold() if char.isalnum())


def parted(word: Word, rules: Rules, where: str) -> Iterator[Word]:
    """The words that one time is given for, which has to be one unless it is to be shared out, by their letters."""
    parts = split(word.text, rules.language)
    if len(parts) > 1 and not rules.share:
        raise UserError(
            f"{where}: {word.text!r} from {word.start:g} to {word.end:g} s is {len(parts)} words, {parts}; give each "
            "its own time, or let ++share=true share the time out by their letters, which is a guess"
        )
    total, done, start = sum(map(len, parts)), 0, word.start
    for part in parts:
        done += len(part)
        end = word.end if done == total else word.start + (word.end - word.start) * done / total
        yield Word(part, start, end)
        start = end


def mend(words: Sequence[Word], seconds: float, overlap: float = ROUNDED) -> tuple[tuple[Span, ...], int]:
    """Times to the microsecond, and how many were mended.

    Where neighbours overlap by at most ``overlap`` seconds, both get the middle as their boundary; a last word that
    ends at most ROUNDED after the audio ends with it.
    """
    times = [[word.start, word.end] for word in words]
    mended = 0
    for before, after in pairwise(times):
        middle = (before[1] + after[0]) / 2
        if 0 < round(before[1] - after[0], 5) <= overlap and before[0] <= middle <= after[1]:
            before[1] = after[0] = middle
            mended += 1
    if times and 0 < round(times[-1][1] - seconds, 5) <= ROUNDED and times[-1][0] <= seconds:
        times[-1][1] = seconds
        mended += 1
    return tuple(Span(round(start, 6), round(end, 6)) for start, end in times), mended


def write_left(path: str, left: Sequence[tuple[str, str]]) -> None:
    """List the files that took no part, ``path<TAB>reason``; no list where all did."""
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)
    if left:
        with atomic_write(path) as file:
            file.writelines(f"{name}\t{reason}\n" for name, reason in left)
        kinds = Counter(os.path.splitext(name)[1] or "without ending" for name, _ in left)
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        log.info("files left alone: %s; all are in %s", counts, path)
