"""TIMIT (read American English with hand-corrected phones) as Kaldi folders: train, dev and test.

Two layouts are known by their folders. LDC's (LDC93S1: TRAIN/DR1/FCJF0/SA1.PHN, names in either case): the corpus's own
training part; as test its core test set of 24 speakers (readme.doc, table 3), as dev 50 others of its test part, those
of Kaldi's egs/timit. A sample with one folder per speaker (dr1-fvmh0/sa1.phn), such as NLTK's: 3 speakers test, 1 dev,
the others train.

With ++words=true, for forced alignment, each folder also has text-words and words.ctm of the .wrd files, and there are
sets train_phone, dev_phone and test_phone, whose words are the labels of the phones. Where one word goes over into the
next (had-your), its hand-corrected times overlap.
"""

from __future__ import annotations

import logging
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[4]))
from speechllm import cli
from speechllm.errors import Rejects, UserError
from speechllm.formats.corpus import check_count, publish

log = logging.getLogger("speechllm")

RATE = 16000
FILE = re.compile(r"(s[aix]\d+)\.(wav|phn|txt|wrd)")
SPEAKER = re.compile(r".*/(dr\d)[-/]([mf][a-z]{3}\d)")
LABEL = re.compile(r"(\d+)\s+(\d+)\s+(\S+)\s*")
SENTENCE = re.compile(r"\d+\s+\d+\s+(\S.*)", re.DOTALL)
LDC = {  # speakers held out of train
    "test": "mdab0 mwbt0 felc0 mtas1 mwew0 fpas0 mjmp0 mlnt0 fpkt0 mlll0 mtls0 fjlm0 "
    "mbpm0 mklt0 fnlp0 mcmj0 mjdh0 fmgd0 mgrt0 mnjm0 fdhc0 mjln0 mpam0 fmld0",
    "dev": "faks0 fdac1 fjem0 mgwt0 mjar0 mmdb1 mmdm2 mpdf0 fcmh0 fkms0 mbdg0 mbwm0 mcsh0 fadg0 fdms0 fedw0 mgjf0 "
    "mglb0 mrtk0 mtaa0 mtdt0 mthc0 mwjg0 fnmr0 frew0 fsem0 mbns0 mmjr0 mdls0 mdlf0 mdvc0 mers0 fmah0 fdrw0 "
    "mrcs0 mrjm4 fcal1 mmwh0 fjsj0 majc0 mjsw0 mreb0 fgjd0 fjmg0 mroa0 mteb0 mjfc0 mrjr0 fmml0 mrws1",
}
SAMPLE = {"test": "mbma1 madd0 fbcg1", "dev": "ftlg0"}
UTTERANCES = {"train": 3696, "dev": 400, "test": 192}  # of LDC's layout, without sa1 and sa2

Files = Mapping[str, Path]
"""Of one utterance, by kind."""


class Span(NamedTuple):
    label: str
    start: float
    """Seconds."""
    end: float


class Read(NamedTuple):
    """One utterance."""

    wav: Path
    sentence: str
    phones: list[Span]
    words: list[Span]
    """None of them where they were not asked for."""


@dataclass
class Options:
    corpus: str
    """Folder of the corpus, in LDC's layout or the sample's; it may be some folders further down."""
    output_dir: str = "data"
    """Folder of the sets."""
    max_bad: int = 0
    """Utterances without wav, phn or txt, or with a damaged one, that are left out, listed in corpus.bad."""
    words: bool = False
    """Also what forced alignment needs, from the .wrd files."""


def main(options: Options) -> None:
    output = Path(options.output_dir)
    rejects = Rejects(output / "corpus.bad", options.max_bad)
    found = collect(Path(options.corpus))
    from_ldc = any(part for part, _ in found)
    sets, unused = parted(found, from_ldc)
    kinds = ("wav", "phn", "txt", "wrd") if options.words else ("wav", "phn", "txt")
    tables = {name: read(utterances, kinds, rejects) for name, utterances in sets.items()}
    rejects.close()
    for name, rows in tables.items():
        if not rows:
            raise UserError(f"{options.corpus}: nobody of {name} is there; give the folder of the whole corpus")
        if from_ldc:
            check_count(name, len(rows), UTTERANCES[name])
        write(output / name, rows, options.words)
        if options.words:
            write_phones(output / f"{name}_phone", rows)
    for reason, count in unused.items():
        log.info("not used: %d utterances, %s", count, reason)


def collect(corpus: Path) -> dict[tuple[str, str], Files]:
    """The files of every utterance, by part of the corpus (train, test; empty in a sample) and utterance id.

    Raises:
        UserError: no utterance, or a file that is there twice.
    """
    found: dict[tuple[str, str], dict[str, Path]] = defaultdict(dict)
    for path in sorted(corpus.absolute().rglob("*")):
        name = FILE.fullmatch(path.name.lower())
        speaker = SPEAKER.fullmatch(path.parent.as_posix().lower())
        if not name or not speaker:
            continue
        part = path.parts[-4].lower() if path.parent.parent.name.lower() == speaker[1] else ""
        if part not in ("", "train", "test"):
            raise UserError(f"{path}: neither in TRAIN/ nor in TEST/; give the corpus in LDC's layout")
        files = found[part, f"{speaker[1]}-{speaker[2]}-{name[1]}"]
        if name[2] in files:
            raise UserError(f"{path}: {files[name[2]]} is the same; give a folder that has the corpus once")
        files[name[2]] = path
    if not found:
        raise UserError(
            f"{corpus}: neither files such as TRAIN/DR1/FCJF0/SA1.PHN nor such as dr1-fvmh0/sa1.phn; give the folder "
            "of TIMIT with ++corpus=DIR"
        )
    if len({bool(part) for part, _ in found}) > 1:
        raise UserError(f"{corpus}: holds both LDC's layout and a sample; give the folder of one")
    return found


def parted(found: Mapping[tuple[str, str], Files], from_ldc: bool) -> tuple[dict[str, dict[str, Files]], Counter[str]]:
    """The utterances of each set, by id, and how many are in none, by reason."""
    sets: dict[str, dict[str, Files]] = {"train": {}, "dev": {}, "test": {}}
    lists = LDC if from_ldc else SAMPLE
    held_out = {speaker: name for name, speakers in lists.items() for speaker in speakers.split()}
    unused: Counter[str] = Counter()
    for (part, key), files in found.items():
        _, speaker, sentence = key.split("-")
        name = "train" if part == "train" else held_out.get(speaker, "train")
        if part == "test" and name == "train":
            unused["of the test part's speakers who are neither in the core test set nor in dev"] += 1
        elif sentence.startswith("sa") and (from_ldc or name != "train"):
            unused["sa1 and sa2, which every speaker reads"] += 1
        else:
            sets[name][key] = files
    return sets, unused


def read(utterances: Mapping[str, Files], kinds: tuple[str, ...], rejects: Rejects) -> dict[str, Read]:
    """What every utterance has that has all of ``kinds``."""
    rows = {}
    for key, files in utterances.items():
        if lack := [kind for kind in kinds if kind not in files]:
            there = str(next(iter(files.values())))
            rejects.add(key, there, f"no .{', no .'.join(lack)} beside it; add it, or remove what is there")
            continue
        try:
            said = labels(files["wrd"], overlapping=True) if "wrd" in kinds else []
            rows[key] = Read(files["wav"], sentence(files["txt"]), labels(files["phn"]), said)
        except ValueError as error:
            rejects.add(key, *error.args)
    return rows


def labels(path: Path, overlapping: bool = False) -> list[Span]:
    """Each line `start end label`, from samples to seconds.

    Raises:
        ValueError: with place and reason; a line that is not that, or none.
    """
    spans, last = [], 0
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        found = LABEL.fullmatch(line)
        if not found or not (last <= int(found[1]) or overlapping) or int(found[1]) >= int(found[2]):
            reason = f"`start end label`, in samples and in order, expected, found {line!r}; correct the line"
            raise ValueError(f"{path}:{number}", reason)
        last = int(found[2])
        spans.append(Span(found[3], int(found[1]) / RATE, last / RATE))
    if not spans:
        raise ValueError(f"{path}:1", "no label; copy the file anew")
    return spans


def sentence(path: Path) -> str:
    """The words of `start end words ...`. Raises ValueError, with place and reason: it is not that."""
    said = path.read_text(encoding="utf-8", errors="replace").strip()
    if not (found := SENTENCE.fullmatch(said)):
        raise ValueError(f"{path}:1", f"`start end words` expected, found {said!r}; copy the file anew")
    return " ".join(found[1].split())


def said(spans: list[Span]) -> str:
    return " ".join(span.label for span in spans)


def write(folder: Path, rows: Mapping[str, Read], with_words: bool) -> None:
    speakers = {key: key.rpartition("-")[0] for key in rows}
    tables = {
        "text": {key: row.sentence for key, row in rows.items()},
        "text-phone": {key: said(row.phones) for key, row in rows.items()},
        "utt2spk": speakers,
        "wav.scp": {key: str(row.wav) for key, row in rows.items()},
    }
    ctms = {"phones.ctm": {key: row.phones for key, row in rows.items()}}
    if with_words:
        tables["text-words"] = {key: said(row.words) for key, row in rows.items()}
        ctms["words.ctm"] = {key: row.words for key, row in rows.items()}
    publish(folder, tables, ctms)
    log.info("%s: %d utterances, %d speakers", folder, len(rows), len(set(speakers.values())))


def write_phones(folder: Path, rows: Mapping[str, Read]) -> None:
    """The set with its phones in the place of words."""
    phones = {f"{key}-phone": row.phones for key, row in rows.items()}
    tables = {
        "text": {key: said(spans) for key, spans in phones.items()},
        "utt2spk": {f"{key}-phone": key.rpartition("-")[0] for key in rows},
        "wav.scp": {f"{key}-phone": str(row.wav) for key, row in rows.items()},
    }
    publish(folder, tables | {"text-words": tables["text"]}, {"words.ctm": phones})


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
