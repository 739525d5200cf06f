"""AISHELL-1 (170 hours of read Mandarin, Apache-2.0) as Kaldi folders: train, dev and test, as the corpus parts them.

Texts lose the blanks that part words in the corpus, as in Fun-ASR's own examples of it, but for those between two
Latin words or letters; full-width letters become ordinary ones.

The corpus has 141,925 recordings and 141,600 transcripts. What lacks one or the other is left out and listed in
<output_dir>/corpus.bad.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[4]))
from speechllm import cli
from speechllm.download import fetch_unpacked, unpack
from speechllm.errors import Rejects, UserError
from speechllm.formats.corpus import Recording, Utterance, check_count, collect, pair, publish_utterances, spread
from speechllm.formats.kaldi import read_table

MD5 = "2f494334227864a8a8fec932999db9d8"  # of data_aishell.tgz
TRANSCRIPT = Path("transcript") / "aishell_transcript_v0.8.txt"
HALF_WIDTH = {code: code - 0xFEE0 for code in range(0xFF10, 0xFF5B) if chr(code).isalnum()}
WORD_GAP = re.compile(r"(?<![A-Za-z]) | (?![A-Za-z])")


class Set(NamedTuple):
    whole: int
    """Utterances with a transcript in the corpus."""
    quick: int


SETS = {"train": Set(120098, 400), "dev": Set(14326, 50), "test": Set(7176, 100)}


@dataclass
class Options:
    corpus: str | None = None
    """Folder data_aishell, or the one above it; without it the corpus is downloaded into downloads/ (15 GB)."""
    output_dir: str = "data"
    """Folder of the sets."""
    size: Literal["full", "quick"] = "full"
    """quick: a few hundred utterances, spread over all speakers."""
    max_bad: int = 400
    """Recordings without transcript and transcripts without recording that are left out; the whole corpus has 325."""
    mirror: str = "https://www.openslr.org"
    """Server to download from; https://openslr.elda.org and https://openslr.magicdatatech.com are others."""


def main(options: Options) -> None:
    corpus = find(Path(options.corpus)) if options.corpus else download(Path("downloads"), options.mirror)
    output = Path(options.output_dir)
    rejects = Rejects(output / "corpus.bad", options.max_bad)
    recordings: dict[str, Recording] = {}
    for name in SETS:
        collect(recordings, (corpus / "wav" / name).glob("*/*.wav"), speaker_depth=0)
    utterances = pair(recordings, read_table(corpus / TRANSCRIPT, rejects.add), rejects)
    rejects.close()
    sets: dict[str, dict[str, Utterance]] = defaultdict(dict)
    for key, (recording, words) in utterances.items():
        sets[recording.path.parents[1].name][key] = Utterance(recording, unspaced(words))
    for name, (whole, quick) in SETS.items():
        check_count(name, len(sets[name]), whole)
        chosen = spread(sets[name], quick) if options.size == "quick" else sets[name]
        publish_utterances(output, name, chosen)


def download(folder: Path, mirror: str) -> Path:
    url = f"{mirror}/resources/33/data_aishell.tgz"
    return find(fetch_unpacked(url, folder / "aishell", MD5))


def find(folder: Path) -> Path:
    """The corpus's folder in ``folder``, with the recordings of every speaker unpacked.

    Raises:
        UserError: it is not there, or not whole.
    """
    corpus = next((one for one in (folder, folder / "data_aishell") if (one / "wav").is_dir()), None)
    if corpus is None:
        raise UserError(f"{folder}: neither wav/ nor data_aishell/wav/; give what data_aishell.tgz unpacks to")
    if not (corpus / TRANSCRIPT).is_file():
        raise UserError(f"{corpus / TRANSCRIPT}: no such file; it comes with data_aishell.tgz: unpack that again")
    unpack_speakers(corpus / "wav")
    return corpus


def unpack_speakers(wavs: Path) -> None:
    """Unpack each ``S0002.tar.gz`` to ``train/S0002/`` (or dev, test) beside it, unless that is done."""
    from tqdm import tqdm

    speakers = [path.name.removesuffix(".tar.gz") for path in sorted(wavs.glob("*.tar.gz"))]
    packed = [name for name in speakers if not any((wavs / part / name).exists() for part in SETS)]
    for name in tqdm(packed, desc="unpack", unit="speaker", disable=not packed):
        archive = wavs / f"{name}.tar.gz"
        unpacked = unpack(archive, wavs / f"{name}.unpacked")
        made = [unpacked / part / name for part in SETS if (unpacked / part / name).is_dir()]
        if not made:
            raise UserError(f"{archive}: none of {', '.join(f'{part}/{name}' for part in SETS)} in it; fetch it again")
        for folder in made:
            target = wavs / folder.parent.name / name
            target.parent.mkdir(exist_ok=True)
            folder.rename(target)
        shutil.rmtree(unpacked)


def unspaced(words: str) -> str:
    """The words without the blanks between them, but for those between Latin ones: 三星 S A -> 三星S A."""
    return WORD_GAP.sub("", " ".join(words.translate(HALF_WIDTH).split()))


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
