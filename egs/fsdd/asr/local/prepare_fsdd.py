"""Make strings of 1 to 5 spoken digits, as Kaldi folders, from the Free Spoken Digit Dataset (CC BY-SA 4.0).

Each string joins single recordings of one speaker with short pauses. Recordings 0 to 4 (the corpus's own test) and the
speaker yweweler are left alone; 5 to 9 make the test set, 10 to 14 dev, the others train. Each recording is used
about equally often. Folders hold wav.scp, text, utt2spk and words.ctm (`utt 1 start duration word`, seconds, from the
joints). Audio stays at 8 kHz. The same seed gives the same bytes; the quick corpus is the first part of the full one.

Without ++corpus the archive of a fixed commit is downloaded. Its sha256 is not known beforehand (the host packs it
anew), so the check is on its content: 3,000 recordings, each a readable 8 kHz wav.
"""

from __future__ import annotations

import logging
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[4]))
from speechllm import cli
from speechllm.download import fetch_unpacked
from speechllm.errors import UserError
from speechllm.formats.corpus import move_wavs, publish, write_wav

log = logging.getLogger("speechllm")

COMMIT = "26eb9aaf76e81b692f806f9140c2d2777410d7a1"
URL = f"https://github.com/Jakobovski/free-spoken-digit-dataset/archive/{COMMIT}.zip"
RECORDINGS = 3000  # of 6 speakers, 10 digits, 50 times
RATE = 8000
NAME = re.compile(r"(\d)_([a-z]+)_(\d+)\.wav")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
HELD_OUT = "yweweler"


class Set(NamedTuple):
    first: int
    """Index of the first recording."""
    last: int
    full: int
    """Strings."""
    quick: int


SETS = {"train": Set(15, 49, 3500, 400), "dev": Set(10, 14, 200, 50), "test": Set(5, 9, 500, 100)}


@dataclass
class Options:
    corpus: str | None = None
    """Folder with the corpus or its recordings; without it the corpus is downloaded into downloads/."""
    output_dir: str = "data"
    """Folder of the sets; wav.scp holds paths as given here, so a relative folder can be moved with the recipe."""
    size: Literal["full", "quick"] = "full"
    """quick: the first few hundred strings, for tests."""
    seed: int = 0


class Recording(NamedTuple):
    digit: int
    speaker: str
    index: int
    samples: np.ndarray
    """(N,) float64 without offset, in units of int16."""


class Span(NamedTuple):
    """A word, in samples."""

    word: str
    start: int
    end: int


def main(options: Options) -> None:
    from tqdm import tqdm

    recordings = load(Path(options.corpus) if options.corpus else download(Path("downloads")))
    output = Path(options.output_dir)
    partial = output / "wavs.partial"
    shutil.rmtree(partial, ignore_errors=True)
    with tqdm(total=sum(getattr(part, options.size) for part in SETS.values()), desc="join", unit="utt") as bar:
        for name, part in SETS.items():
            plan = draw(name, part, recordings, getattr(part, options.size), options.seed)
            rows = {}
            (partial / name).mkdir(parents=True)
            for key, string in plan.items():
                rows[key] = write_string(partial / name / f"{key}.wav", string, draws(options.seed, key))
                bar.update()
            publish_strings(output, partial / name, name, rows)
    partial.rmdir()


def download(folder: Path) -> Path:
    """The unpacked corpus, complete. Raises UserError when files are missing."""
    corpus = fetch_unpacked(URL, folder / f"fsdd-{COMMIT[:12]}")
    found = len(wavs_of(corpus))
    if found != RECORDINGS:
        raise UserError(f"{corpus}: {found} recordings, expected {RECORDINGS}; remove {folder} and run the stage again")
    return corpus


def wavs_of(corpus: Path) -> list[Path]:
    return sorted(path for path in corpus.rglob("*.wav") if NAME.fullmatch(path.name))


def load(corpus: Path) -> list[Recording]:
    """The recordings that the sets may use.

    Raises:
        UserError: no recordings, the same one twice, or one that is no 8 kHz mono wav.
    """
    import soundfile

    recordings, seen, left = [], {}, 0
    for path in wavs_of(corpus):
        digit, speaker, index = NAME.fullmatch(path.name).groups()
        if speaker == HELD_OUT or not any(part.first <= int(index) <= part.last for part in SETS.values()):
            left += 1
            continue
        if path.name in seen:
            raise UserError(f"{path}: there is {seen[path.name]} too; give a folder that holds the corpus once")
        seen[path.name] = path
        try:
            samples, rate = soundfile.read(path, dtype="int16")
        except soundfile.LibsndfileError as error:
            raise UserError(f"{path}: cannot be read: {error}; fetch the corpus again") from error
        if rate != RATE or samples.ndim != 1 or not len(samples):
            raise UserError(f"{path}: {rate} Hz, shape {samples.shape}; 8 kHz mono expected, fetch the corpus again")
        # One speaker's recordings sit 230 below zero, which would click at each joint
        recordings.append(Recording(int(digit), speaker, int(index), samples - samples.mean()))
    if not recordings:
        raise UserError(f"{corpus}: no recordings such as 7_george_12.wav; give the corpus's folder with ++corpus=DIR")
    log.info("%d recordings used, %d held out", len(recordings), left)
    return recordings


def draws(seed: int, key: str) -> np.random.Generator:
    return np.random.default_rng([seed, *key.encode()])


def draw(name: str, part: Set, recordings: list[Recording], count: int, seed: int) -> dict[str, list[Recording]]:
    """The strings of a set, by utterance id.

    The speakers take turns, each with a deck of recordings that is dealt to the end before it is shuffled again.

    Raises:
        UserError: no recording belongs to this set.
    """
    own = [one for one in recordings if part.first <= one.index <= part.last]
    if not own:
        raise UserError(f"no recording has an index of {part.first} to {part.last}, for {name}; give the whole corpus")
    speakers = sorted({one.speaker for one in own})
    decks: dict[str, list[Recording]] = {speaker: [] for speaker in speakers}
    rng = draws(seed, name)
    strings = {}
    for number in range(count):
        speaker = speakers[number % len(speakers)]
        string = []
        for _ in range(rng.integers(1, 6)):
            if not decks[speaker]:
                cards = [one for one in own if one.speaker == speaker]
                decks[speaker] = [cards[place] for place in rng.permutation(len(cards))]
            string.append(decks[speaker].pop())
        strings[f"{speaker}-{name}-{number:04d}"] = string
    return strings


def write_string(path: Path, string: list[Recording], rng: np.random.Generator) -> list[Span]:
    """Join the recordings with pauses of 50 to 250 ms, which hold noise no louder than their quietest 10 ms."""
    floor = min(quietest(one.samples) for one in string)
    gaps = [rng.normal(0, floor * rng.uniform(0.1, 1), rng.integers(RATE // 20, RATE // 4)) for _ in [*string, None]]
    pieces, spans, length = [gaps[0]], [], len(gaps[0])
    for one, gap in zip(string, gaps[1:], strict=True):
        spans.append(Span(WORDS[one.digit], length, length + len(one.samples)))
        pieces += [one.samples, gap]
        length += len(one.samples) + len(gap)
    write_wav(path, np.concatenate(pieces).round().clip(-32768, 32767), RATE)
    return spans


def quietest(samples: np.ndarray) -> float:
    """Root mean square of the quietest 10 ms."""
    frames = samples[: len(samples) // 80 * 80].reshape(-1, 80)
    return float(np.sqrt((frames**2).mean(axis=1)).min())


def publish_strings(output: Path, partial: Path, name: str, rows: dict[str, list[Span]]) -> None:
    wavs = move_wavs(output, partial, name)
    tables = {
        "text": {key: " ".join(word for word, *_ in spans) for key, spans in rows.items()},
        "utt2spk": {key: key.split("-")[0] for key in rows},
        "wav.scp": {key: str(wavs / f"{key}.wav") for key in rows},
    }
    times = {key: [(word, start / RATE, end / RATE) for word, start, end in spans] for key, spans in rows.items()}
    publish(output / name, tables, {"words.ctm": times})


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
