"""LibriSpeech (960 hours of read English, CC BY 4.0) as Kaldi folders.

The parts train-* make the set train, the parts dev-* the set dev; each part test-* is a set of its own name. Texts are
in lower case: the corpus has capitals alone, which a language model has seen little of and cuts into more tokens, and
scoring does not tell case.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[4]))
from speechllm import cli
from speechllm.download import fetch_unpacked
from speechllm.errors import Rejects, UserError
from speechllm.formats.corpus import Recording, Utterance, check_count, collect, pair, publish_utterances, spread
from speechllm.formats.kaldi import Table, read_table

QUICK = {"train": 400, "dev": 50, "test": 100}


class Part(NamedTuple):
    md5: str
    """Of its archive, from the md5sum.txt that is published beside it."""
    utterances: int


PARTS = {
    "train-clean-100": Part("2a93770f6d5c6c964bc36631d331a522", 28539),
    "train-clean-360": Part("c0e676e450a7ff2f54aeade5171606fa", 104014),
    "train-other-500": Part("d1a0fd59409feb2c614ce4d30c387708", 148688),
    "dev-clean": Part("42e2234ba48799c1f50f24a7926300a1", 2703),
    "dev-other": Part("c8d0bcc9cca99d4f8b62fcc847357931", 2864),
    "test-clean": Part("32fa31d27d2e1cad72775fee3f4849a9", 2620),
    "test-other": Part("fb5a50374b501bb3bac4815ee91d3135", 2939),
}


@dataclass
class Options:
    corpus: str | None = None
    """Folder LibriSpeech, or the one above it; without it the parts are downloaded into downloads/."""
    parts: list[str] = field(default_factory=lambda: ["train-clean-100", "dev-clean", "test-clean", "test-other"])
    """Parts of the corpus to take; at least one each of train, dev and test."""
    output_dir: str = "data"
    """Folder of the sets."""
    size: Literal["full", "quick"] = "full"
    """quick: a few hundred utterances, spread over all speakers."""
    max_bad: int = 0
    """Recordings without transcript and transcripts without recording that are left out, listed in corpus.bad."""
    mirror: str = "https://www.openslr.org"
    """Server to download from; https://openslr.elda.org and https://openslr.magicdatatech.com are others."""


def main(options: Options) -> None:
    asked = list(dict.fromkeys(options.parts))
    sets = sets_of(asked)
    output = Path(options.output_dir)
    rejects = Rejects(output / "corpus.bad", options.max_bad)
    recordings: dict[str, Recording] = {}
    texts: Table = {}
    for part in asked:
        folder = find(Path(options.corpus), part) if options.corpus else download(part, options.mirror)
        collect(recordings, folder.glob("*/*/*.flac"), speaker_depth=1)
        for path in sorted(folder.glob("*/*/*.trans.txt")):
            texts |= read_table(path, rejects.add)
    by_part: dict[str, dict[str, Utterance]] = {part: {} for part in asked}
    for key, (recording, words) in pair(recordings, texts, rejects).items():
        by_part[recording.path.parents[2].name][key] = Utterance(recording, words.lower())
    rejects.close()
    for part, utterances in by_part.items():
        check_count(part, len(utterances), PARTS[part].utterances)
    for name, parts in sets.items():
        utterances = {key: one for part in parts for key, one in by_part[part].items()}
        if options.size == "quick":
            utterances = spread(utterances, QUICK[name.split("-")[0]])
        publish_utterances(output, name, utterances)


def sets_of(parts: list[str]) -> dict[str, list[str]]:
    """The parts of each set.

    Raises:
        UserError: an unknown part, or none for train, dev or test.
    """
    sets: dict[str, list[str]] = {}
    for part in parts:
        if part not in PARTS:
            raise UserError(f"{part}: no part of LibriSpeech; the parts are {', '.join(PARTS)}")
        kind = part.split("-")[0]
        sets.setdefault(part if kind == "test" else kind, []).append(part)
    for kind in ("train", "dev", "test"):
        if not any(name.startswith(kind) for name in sets):
            raise UserError(f"no {kind} part among {', '.join(parts)}; add one of those that begin with {kind}-")
    return sets


def find(corpus: Path, part: str) -> Path:
    for folder in (corpus / part, corpus / "LibriSpeech" / part):
        if folder.is_dir():
            return folder
    raise UserError(
        f"{corpus}: neither {part}/ nor LibriSpeech/{part}/; give the folder LibriSpeech, and the parts that are in it "
        "with ++parts (run.sh: --parts)"
    )


def download(part: str, mirror: str) -> Path:
    folder = Path("downloads") / part
    return find(fetch_unpacked(f"{mirror}/resources/12/{part}.tar.gz", folder, PARTS[part].md5), part)


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
