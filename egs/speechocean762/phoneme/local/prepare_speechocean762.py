"""speechocean762 (English read by Mandarin speakers, with experts' scores) as Kaldi folders: train, dev and test.

The phones of text-phone are canonical: what a dictionary says the words sound like, not what the speaker said. They are
joined per utterance; where a phone stands in its word (_B, _I, _E, _S) is left out, stress digits stay.

The full corpus has train/ and test/; every tenth speaker of its train, from the last, is dev here. A part of the corpus
with its tables in one folder is split by speaker, in the order of the ids: the last is test, the one before it dev.

Where scores.json is there, a set also has phone-scores (`utt score ...`, one per phone of text-phone: 2 correct, 1 with
a heavy accent, 0 wrong or missed; experts' mean), utt-scores (`utt total`, 0 to 10), and conversations.jsonl, whose
answers are the phones between <PH_START> and <PH_END> and then the scores of the sentence.
"""

from __future__ import annotations

import json
import logging
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[4]))
from speechllm import cli
from speechllm.errors import Rejects, UserError
from speechllm.files import atomic_write
from speechllm.formats import kaldi
from speechllm.formats.corpus import publish
from speechllm.phonemes import MARKS

log = logging.getLogger("speechllm")

POSITIONS = ("_B", "_I", "_E", "_S")
SENTENCE_SCORES = ("total", "accuracy", "completeness", "fluency", "prosodic")
DEV_EVERY = 10  # speakers of the full corpus's train
SCORES = ("scores.json", "resource/scores.json")


class Scores(NamedTuple):
    """What experts gave an utterance.

    Args:
        phones, each: the phones that they scored, and the score of each.
        sentence: the scores of the whole, by name.
    """

    phones: list[str]
    each: list[float]
    sentence: dict[str, float]


class Utterance(NamedTuple):
    wav: Path
    text: str
    speaker: str
    phones: list[str]
    scores: Scores | None


@dataclass
class Options:
    corpus: str
    """Folder of the corpus: train/, test/, resource/ and WAVE/, or a part with wav.scp, text, text-phone and WAVE/."""
    output_dir: str = "data"
    """Folder of the sets."""
    prompt: str = "请你做语音评测"
    """What conversations.jsonl asks, after the audio."""
    max_bad: int = 0
    """Utterances that lack something, or whose tables do not agree, that are left out, listed in corpus.bad."""


def main(options: Options) -> None:
    corpus, output = Path(options.corpus).absolute(), Path(options.output_dir)
    rejects = Rejects(output / "corpus.bad", options.max_bad)
    whole = (corpus / "train").is_dir()
    phones = read_phones(corpus / ("resource/text-phone" if whole else "text-phone"), rejects)
    scores = read_scores(corpus, rejects)
    parts = {name: gather(corpus, name, phones, scores, rejects) for name in (("train", "test") if whole else ("",))}
    rejects.close()
    for name, utterances in split(parts).items():
        if not utterances:
            raise UserError(f"{corpus}: no speaker is left for {name}; give the folder of the whole corpus")
        write(output / name, utterances, options.prompt)
    if scores is None:
        log.info("no scores.json in %s, so no phone-scores, utt-scores and conversations.jsonl", corpus)


def read_phones(path: Path, rejects: Rejects) -> dict[str, list[list[str]]]:
    """The phones of each word of each utterance, from rows `utterance.number phone ...`, one per word, from 0."""
    words: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for row, (value, _) in kaldi.read_table(path, rejects.add).items():
        key, _, number = row.rpartition(".")
        words[key][number] = [phone[:-2] if phone.endswith(POSITIONS) else phone for phone in value.split()]
    found = {}
    for key, by_number in words.items():
        if sorted(by_number) == sorted(map(str, range(len(by_number)))):
            found[key] = [by_number[str(number)] for number in range(len(by_number))]
        else:
            rejects.add(key, str(path), f"words .0, .1 ... expected, found .{', .'.join(by_number)}; add the others")
    return found


def read_scores(corpus: Path, rejects: Rejects) -> dict[str, Scores] | None:
    """The scores of each utterance; None without scores.json."""
    path = next((corpus / name for name in SCORES if (corpus / name).is_file()), None)
    if path is None:
        return None
    try:
        rows = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}; fetch the file again") from error
    found = {}
    for key, row in rows.items():
        try:
            found[key] = scores_of(row)
        except (KeyError, TypeError, ValueError) as error:
            rejects.add(key, str(path), f"not the scores of an utterance ({error!r}); fetch the file again")
    return found


def scores_of(row: Any) -> Scores:
    """What scores.json has of an utterance; some releases write a word's phones as one string.

    Raises:
        KeyError, TypeError, ValueError: it is not that.
    """
    phones, each = [], []
    for word in row["words"]:
        spelt = word["phones"].split() if isinstance(word["phones"], str) else word["phones"]
        given = [float(score) for score in word["phones-accuracy"]]
        if len(given) != len(spelt):
            raise ValueError(f"{len(given)} scores of the {len(spelt)} phones of {word['text']}")
        phones += spelt
        each += given
    return Scores(phones, each, {name: float(row[name]) for name in SENTENCE_SCORES})


def gather(
    corpus: Path,
    part: str,
    phones: Mapping[str, list[list[str]]],
    scores: Mapping[str, Scores] | None,
    rejects: Rejects,
) -> dict[str, Utterance]:
    """The utterances of a part that have all they should have, with the phones that experts scored, if any."""
    tables = {name: kaldi.read_table(corpus / part / name, rejects.add) for name in ("wav.scp", "text", "utt2spk")}
    needed: dict[str, Mapping] = tables | {"text-phone": phones} | ({} if scores is None else {"scores.json": scores})
    told = {key for key, _, _ in rejects.rows}
    found, differ = {}, []
    for key in sorted((tables["wav.scp"].keys() | tables["text"].keys()) - told):
        where = (tables["wav.scp"].get(key) or tables["text"][key])[1]
        if lack := [name for name, table in needed.items() if key not in table]:
            rejects.add(key, where, f"not in {', '.join(lack)}; add it there, or remove it everywhere")
            continue
        wav, text = corpus / tables["wav.scp"][key][0], tables["text"][key][0]
        if not wav.is_file():
            rejects.add(key, where, f"{wav}: no such file; put it there")
        elif len(text.split()) != len(phones[key]):
            rejects.add(key, where, f"{len(text.split())} words in text, {len(phones[key])} in text-phone; mend one")
        else:
            given = None if scores is None else scores[key]
            canonical = [phone for word in phones[key] for phone in word]
            if given and given.phones != canonical:
                differ.append(key)
                canonical = given.phones
            found[key] = Utterance(wav, text, tables["utt2spk"][key][0], canonical, given)
    if differ:
        log.warning("scores.json has other phones in %d utterances, and they are taken: %s ...", len(differ), differ[0])
    return found


def split(parts: Mapping[str, dict[str, Utterance]]) -> dict[str, dict[str, Utterance]]:
    """The sets, with no speaker in two of them."""
    given = parts.get("train", parts.get("", {}))
    speakers = sorted({one.speaker for one in given.values()})
    test = {} if "train" in parts else {key: one for key, one in given.items() if one.speaker == speakers[-1]}
    dev = speakers[::-DEV_EVERY] if "train" in parts else speakers[-2:-1]
    sets = {"train": {}, "dev": {}, "test": parts.get("test", test)}
    for key in given.keys() - test.keys():
        sets["dev" if given[key].speaker in dev else "train"][key] = given[key]
    return sets


def write(folder: Path, utterances: Mapping[str, Utterance], prompt: str) -> None:
    tables = {
        "text": {key: one.text for key, one in utterances.items()},
        "text-phone": {key: " ".join(one.phones) for key, one in utterances.items()},
        "utt2spk": {key: one.speaker for key, one in utterances.items()},
        "wav.scp": {key: str(one.wav) for key, one in utterances.items()},
    }
    scored = {key: one.scores for key, one in utterances.items() if one.scores}
    for name in ("phone-scores", "utt-scores", "conversations.jsonl"):
        (folder / name).unlink(missing_ok=True)  # of an earlier run, perhaps with scores
    if scored:
        tables["phone-scores"] = {key: " ".join(f"{score:g}" for score in one.each) for key, one in scored.items()}
        tables["utt-scores"] = {key: f"{one.sentence['total']:g}" for key, one in scored.items()}
        with atomic_write(folder / "conversations.jsonl") as file:
            for key in sorted(scored):
                file.write(json.dumps(conversation(key, utterances[key], prompt), ensure_ascii=False) + "\n")
    publish(folder, tables)
    log.info("%s: %d utterances, %d speakers", folder, len(utterances), len(set(tables["utt2spk"].values())))


def conversation(key: str, one: Utterance, prompt: str) -> dict:
    """Phones and scores as one answer: <PH_START> W IY0 <PH_END> total 8 accuracy 8 ..."""
    said = " ".join(f"{name} {score:g}" for name, score in one.scores.sentence.items())
    turns = {
        "user": f"<audio>{one.wav}</audio>{prompt}",
        "assistant": f"{MARKS[0]} {' '.join(one.phones)} {MARKS[1]} {said}",
    }
    return {"id": key, "conversations": [{"from": name, "value": text} for name, text in turns.items()]}


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
