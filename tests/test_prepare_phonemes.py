"""The prepare scripts of the phoneme recipes, on miniatures of their corpora and on the real samples."""

import itertools
import json
from pathlib import Path

import miniature
import numpy as np
import pytest
import soundfile
from miniature import ROOT

from speechllm import audio
from speechllm.errors import UserError
from speechllm.formats import conversations
from speechllm.formats.kaldi import read_text
from speechllm.phonemes import stretches
from speechllm.sample import Clip


def load(name):
    return miniature.load(ROOT / "egs" / name / "phoneme" / "local" / f"prepare_{name}.py", f"prepare_{name}")


def tables(folder):
    return {path.name: read_text(path) for path in folder.iterdir() if path.suffix not in (".jsonl", ".ctm")}


# TIMIT.

SPOKEN = "0 4000 h#\n4000 6400 sh\n6400 8000 iy\n"


@pytest.fixture
def timit():
    return load("timit")


def say(folder, name, upper=False, format="NIST"):
    """An utterance in a corpus's layout: half a second, three phones."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = {kind: f"{name}.{kind}".upper() if upper else f"{name}.{kind}" for kind in ("wav", "phn", "txt")}
    wave = 0.1 * np.sin(np.arange(8000) / 5)
    soundfile.write(folder / kinds["wav"], wave, 16000, format=format, subtype="PCM_16")
    (folder / kinds["phn"]).write_text(SPOKEN)
    (folder / kinds["txt"]).write_text("0 8000 She had it. \n")


SPEAKERS = ["TRAIN/DR1/FCJF0", "TRAIN/DR8/MTCS0", "TEST/DR1/MDAB0", "TEST/DR1/FAKS0", "TEST/DR2/FCMR0"]


@pytest.mark.parametrize("upper", [True, False])
def test_timit_in_the_layout_of_ldc(timit, tmp_path, caplog, upper):
    caplog.set_level("INFO")
    root = tmp_path / ("TIMIT" if upper else "timit")
    for speaker in SPEAKERS:
        for name in ("sa1", "sa2", "si648", "sx37"):
            say(root / (speaker if upper else speaker.lower()), name, upper)
    (root / "README.DOC").write_text("not an utterance")
    timit.main(timit.Options(corpus=str(tmp_path), output_dir=str(tmp_path / "data")))
    found = {name: tables(tmp_path / "data" / name) for name in ("train", "dev", "test")}
    assert list(found["train"]["text"]) == [
        "dr1-fcjf0-si648",
        "dr1-fcjf0-sx37",
        "dr8-mtcs0-si648",
        "dr8-mtcs0-sx37",
    ]
    assert list(found["dev"]["text"]) == ["dr1-faks0-si648", "dr1-faks0-sx37"]
    assert set(found["test"]["text"].values()) == {"She had it."}
    assert found["test"]["text-phone"] == {"dr1-mdab0-si648": "h# sh iy", "dr1-mdab0-sx37": "h# sh iy"}
    assert found["test"]["utt2spk"] == dict.fromkeys(found["test"]["text"], "dr1-mdab0")
    assert (tmp_path / "data/test/phones.ctm").read_text().splitlines()[:3] == [
        "dr1-mdab0-si648 1 0.000000 0.250000 h#",  # 4000 of 16000 samples a second
        "dr1-mdab0-si648 1 0.250000 0.150000 sh",
        "dr1-mdab0-si648 1 0.400000 0.100000 iy",
    ]
    for path in found["test"]["wav.scp"].values():  # NIST SPHERE
        assert Path(path).read_bytes().startswith(b"NIST_1A")
        assert audio.duration(Clip(path)) == 0.5
        assert np.allclose(audio.read(Clip(path)), 0.1 * np.sin(np.arange(8000) / 5), atol=1e-4)
    assert "train: 4 utterances; the whole corpus has 3696" in caplog.text
    assert "not used: 8 utterances, sa1 and sa2" in caplog.text
    assert "not used: 4 utterances, of the test part's speakers who are neither" in caplog.text


def test_the_lists_of_timit(timit):
    """The core test set is table 3 of the corpus's readme.doc: 2 men and a woman of each of the 8 dialects."""
    test, dev = timit.LDC["test"].split(), timit.LDC["dev"].split()
    assert (len(test), len(dev), len({*test, *dev})) == (24, 50, 74)
    assert sorted(speaker[0] for speaker in test) == ["f"] * 8 + ["m"] * 16
    assert all(timit.SPEAKER.fullmatch(f"x/dr1/{speaker}") for speaker in [*test, *dev])


def test_the_core_test_set_is_that_of_the_readme(timit, shared_data):
    readme = shared_data / "timit_sample" / "readme.doc"
    if not readme.is_file():
        pytest.skip(f"no {readme}")
    table = readme.read_text(errors="replace").partition("Table 3:")[2].partition("Complete Test Set")[0]
    rows = [line.replace(",", "").split() for line in table.splitlines() if line.strip()[:1].isdigit()]
    listed = {f"{sex}{name}".lower() for _, *names in rows for sex, name in zip("mmf", names, strict=True)}
    assert listed == set(timit.LDC["test"].split())


def test_the_sample_of_timit(timit, shared_data, tmp_path):
    corpus = shared_data / "timit_sample"
    if not corpus.is_dir():
        pytest.skip(f"no {corpus}")
    timit.main(timit.Options(corpus=str(corpus), output_dir=str(tmp_path)))
    found = {name: tables(tmp_path / name) for name in ("train", "dev", "test")}
    assert {name: len(one["text"]) for name, one in found.items()} == {"train": 80, "dev": 8, "test": 24}
    assert set(found["test"]["utt2spk"].values()) == {"dr6-mbma1", "dr7-madd0", "dr8-fbcg1"}
    assert set(found["dev"]["utt2spk"].values()) == {"dr5-ftlg0"}
    sentences = {name: {key.rpartition("-")[2] for key in one["text"]} for name, one in found.items()}
    assert sentences["train"] >= {"sa1", "sa2"} and not (sentences["dev"] | sentences["test"]) & {"sa1", "sa2"}
    key = "dr3-falk0-sa1"
    assert found["train"]["text"][key] == "She had your dark suit in greasy wash water all year."
    labels = [line.split()[2] for line in (corpus / "dr3-falk0" / "sa1.phn").read_text().splitlines()]
    assert found["train"]["text-phone"][key].split() == labels
    spans = [line.split() for line in (tmp_path / "train/phones.ctm").read_text().splitlines() if line.startswith(key)]
    assert [span[4] for span in spans] == labels
    for one, after in itertools.pairwise(spans):  # gold times leave no gap, but for the rounding
        assert abs(float(one[2]) + float(one[3]) - float(after[2])) < 2e-6


def test_timit_with_the_times_of_its_words(timit, tmp_path, shared_data):
    corpus = shared_data / "timit_sample"
    if not corpus.is_dir():
        pytest.skip(f"no {corpus}")
    timit.main(timit.Options(corpus=str(corpus), output_dir=str(tmp_path), words=True))
    key = "dr4-maeb0-sa1"
    assert read_text(tmp_path / "train/text-words")[key] == "she had your dark suit in greasy wash water all year"
    lines = [line.split() for line in (tmp_path / "train/words.ctm").read_text().splitlines() if line.startswith(key)]
    had, your = (next(line for line in lines if line[4] == word) for word in ("had", "your"))
    assert float(had[2]) + float(had[3]) == pytest.approx(9130 / 16000)  # they overlap
    assert float(your[2]) == pytest.approx(8590 / 16000)
    phones = read_text(tmp_path / "test_phone/text")
    assert phones["dr6-mbma1-si2214-phone"] == read_text(tmp_path / "test/text-phone")["dr6-mbma1-si2214"]
    assert len(phones) == 24


def remove(name):
    return lambda folder: (folder / name).unlink()


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    "damage, where, reason",
    [
        (remove("sx1.phn"), "sx1.txt", "no .phn beside it"),
        (remove("sx1.wav"), "sx1.phn", "no .wav beside it"),
        (remove("sx1.txt"), "sx1.phn", "no .txt beside it"),
        (write("sx1.phn", ""), "sx1.phn:1", "no label"),
        (write("sx1.phn", "0 10 h#\n10 20\n"), "sx1.phn:2", "expected, found '10 20'"),
        (write("sx1.phn", "0 10 h#\n20 15 iy\n"), "sx1.phn:2", "expected, found '20 15 iy'"),
        (write("sx1.phn", "0 10 h#\n9 15 iy\n"), "sx1.phn:2", "in samples and in order"),
        (write("sx1.txt", "She had it.\n"), "sx1.txt:1", "expected, found 'She had it.'"),
    ],
)
def test_what_is_wrong_with_timit_is_a_fault_unless_allowed(timit, tmp_path, damage, where, reason):
    for speaker in ("dr1-fvmh0", "dr5-ftlg0", "dr6-mbma1"):
        for name in ("sx1", "sx2"):
            say(tmp_path / "timit" / speaker, name, format="WAV")
    damage(tmp_path / "timit" / "dr1-fvmh0")
    options = timit.Options(corpus=str(tmp_path / "timit"), output_dir=str(tmp_path / "data"))
    with pytest.raises(UserError, match="1 bad row"):
        timit.main(options)
    assert not (tmp_path / "data" / "train").exists()
    key, place, said = (tmp_path / "data" / "corpus.bad").read_text().rstrip("\n").split("\t")
    assert (key, place) == ("dr1-fvmh0-sx1", f"{tmp_path}/timit/dr1-fvmh0/{where}") and reason in said
    options.max_bad = 1
    timit.main(options)
    assert list(read_text(tmp_path / "data/train/text")) == ["dr1-fvmh0-sx2"]


def test_folders_that_are_not_timit(timit, tmp_path):
    options = timit.Options(corpus=str(tmp_path), output_dir=str(tmp_path / "data"))
    with pytest.raises(UserError, match=r"neither files such as TRAIN/DR1/FCJF0/SA1\.PHN"):
        timit.main(options)
    say(tmp_path / "TRAIN/DR1/FCJF0", "SX37")
    with pytest.raises(UserError, match="nobody of dev is there"):
        timit.main(options)
    say(tmp_path / "copy/TRAIN/DR1/FCJF0", "SX37")
    with pytest.raises(UserError, match="is the same; give a folder that has the corpus once"):
        timit.main(options)
    say(tmp_path / "OTHER/DR1/FCJF0", "SX38")
    with pytest.raises(UserError, match="neither in TRAIN/ nor in TEST/"):
        timit.main(options)


# speechocean762.

# Two words of three and two phones, as in the corpus's own tables; scores of the form that its README gives.
PHONES = {"WE": "W_B IY0_E", "CALL": "K_B AO0_I L_E", "A": "AH0_S"}


def scored(words, old_form=False):
    said = []
    for text in words:
        phones = [phone[:-2] for phone in PHONES[text].split()]
        score = [2.0, 1.8, 0.4][: len(phones)]
        said.append({"text": text, "accuracy": 10, "stress": 10, "total": 10, "phones-accuracy": score})
        said[-1]["phones"] = " ".join(phones) if old_form else phones
        said[-1]["mispronunciations"] = []
    names = {"accuracy": 8, "completeness": 10.0, "fluency": 9, "prosodic": 9, "total": 7.6}
    return {"text": " ".join(words), **names, "words": said}


@pytest.fixture
def ocean():
    return load("speechocean762")


@pytest.fixture
def corpus(tmp_path):
    """``corpus(speakers)`` makes tables in folders of the given names, two utterances per speaker."""

    def make(parts, phones="text-phone", scores=None):
        home, sounds, given = tmp_path / "so", [], {}
        (home / phones).parent.mkdir(parents=True)
        for part, speakers in parts.items():
            rows = {"wav.scp": [], "text": [], "utt2spk": []}
            for speaker in speakers:
                folder = home / "WAVE" / f"SPEAKER{speaker}"
                folder.mkdir(parents=True)
                for number, words in enumerate((["WE", "CALL"], ["CALL", "A"]), 1):
                    key = f"0{speaker}000{number}"
                    soundfile.write(folder / f"{key}.WAV", np.full(800, 0.1), 16000, format="WAV")
                    rows["wav.scp"].append(f"{key}\tWAVE/SPEAKER{speaker}/{key}.WAV\n")
                    rows["text"].append(f"{key}\t{' '.join(words)}\n")
                    rows["utt2spk"].append(f"{key}\t{speaker}\n")
                    sounds += [f"{key}.{i}\t{PHONES[word]}\n" for i, word in enumerate(words)]
                    given[key] = scored(words, old_form=speaker == speakers[0])
            (home / part).mkdir(exist_ok=True)
            for name, lines in rows.items():
                (home / part / name).write_text("".join(lines))
        (home / phones).write_text("".join(sounds))
        if scores:
            (home / scores).write_text(json.dumps(given))
        return home

    return make


def test_the_whole_speechocean762_with_scores(ocean, corpus, tmp_path):
    train = [f"{number:04d}" for number in range(1, 22)]
    home = corpus({"train": train, "test": ["9001"]}, "resource/text-phone", "resource/scores.json")
    out = tmp_path / "data"
    ocean.main(ocean.Options(corpus=str(home), output_dir=str(out)))
    found = {name: tables(out / name) for name in ("train", "dev", "test")}
    assert set(found["test"]["utt2spk"].values()) == {"9001"}
    assert set(found["dev"]["utt2spk"].values()) == {"0001", "0011", "0021"}
    assert len(found["train"]["text"]) == 2 * 18
    assert found["test"]["text"] == {"090010001": "WE CALL", "090010002": "CALL A"}
    assert found["test"]["text-phone"] == {"090010001": "W IY0 K AO0 L", "090010002": "K AO0 L AH0"}
    assert found["test"]["phone-scores"] == {"090010001": "2 1.8 2 1.8 0.4", "090010002": "2 1.8 0.4 2"}
    assert found["test"]["utt-scores"] == {"090010001": "7.6", "090010002": "7.6"}
    assert found["test"]["wav.scp"]["090010001"] == f"{home}/WAVE/SPEAKER9001/090010001.WAV"
    for name, one in found.items():
        rows = list(conversations.join(str(out / name / "conversations.jsonl")))
        assert {row.key: stretches(row.text) for row in rows} == {
            key: [phones.split()] for key, phones in one["text-phone"].items()
        }
        assert {row.source for row in rows} == set(one["wav.scp"].values())
    assert rows[0].text == (
        "<PH_START> W IY0 K AO0 L <PH_END> total 7.6 accuracy 8 completeness 10 fluency 9 prosodic 9"
    )
    assert json.loads(rows[0].prompt)[1:] == ["", "请你做语音评测"]


def test_phones_that_experts_scored_stand_before_those_of_the_dictionary(ocean, corpus, tmp_path, caplog):
    home = corpus({"": ["0001", "0002", "0003"]}, scores="scores.json")
    rows = json.loads((home / "scores.json").read_text())
    rows["000010001"]["words"][0]["phones"] = ["W", "IY1"]
    (home / "scores.json").write_text(json.dumps(rows))
    ocean.main(ocean.Options(corpus=str(home), output_dir=str(tmp_path / "data")))
    assert read_text(tmp_path / "data/train/text-phone")["000010001"] == "W IY1 K AO0 L"
    assert "scores.json has other phones in 1 utterances, and they are taken: 000010001" in caplog.text
    (home / "scores.json").unlink()
    ocean.main(ocean.Options(corpus=str(home), output_dir=str(tmp_path / "data")))
    assert {path.name for path in (tmp_path / "data/train").iterdir()} == {"text", "text-phone", "utt2spk", "wav.scp"}


def edit(name, old, new):
    return lambda home: (home / name).write_text((home / name).read_text().replace(old, new))


def score(change):
    """Change the scores of the first utterance."""

    def damage(home):
        rows = json.loads((home / "scores.json").read_text())
        change(rows["000010001"])
        (home / "scores.json").write_text(json.dumps(rows))

    return damage


@pytest.mark.parametrize(
    "damage, reason",
    [
        (lambda home: (home / "WAVE/SPEAKER0001/000010001.WAV").unlink(), "000010001.WAV: no such file"),
        (edit("text", "000010001\tWE CALL\n", ""), "not in text; add it there"),
        (edit("wav.scp", "000010001\tWAVE/SPEAKER0001/000010001.WAV\n", ""), "not in wav.scp"),
        (edit("utt2spk", "000010001\t0001\n", ""), "not in utt2spk"),
        (edit("text", "000010001\tWE CALL\n", "000010001\tWE CALL A\n"), "3 words in text, 2 in text-phone"),
        (edit("text-phone", "000010001.1", "000010001.2"), "words .0, .1 ... expected, found .0, .2"),
        (edit("scores.json", '"000010001"', '"000010009"'), "not in scores.json"),
        (score(lambda row: row["words"][1]["phones-accuracy"].pop()), "2 scores of the 3 phones of CALL"),
        (score(lambda row: row.pop("total")), "not the scores of an utterance (KeyError('total'))"),
    ],
)
def test_what_does_not_agree_is_a_fault_unless_allowed(ocean, corpus, tmp_path, damage, reason):
    home = corpus({"": ["0001", "0002", "0003"]}, scores="scores.json")
    damage(home)
    options = ocean.Options(corpus=str(home), output_dir=str(tmp_path / "data"))
    with pytest.raises(UserError, match="bad row"):
        ocean.main(options)
    rows = [line.split("\t") for line in (tmp_path / "data/corpus.bad").read_text().splitlines()]
    assert ("000010001" in {key for key, _, _ in rows}) and any(reason in said for _, _, said in rows)
    assert not (tmp_path / "data/train").exists()
    options.max_bad = len(rows)
    ocean.main(options)
    assert "000010001" not in read_text(tmp_path / "data/train/text")


def test_the_part_of_speechocean762(ocean, shared_data, tmp_path):
    corpus = shared_data / "speechocean762_part"
    if not corpus.is_dir():
        pytest.skip(f"no {corpus}")
    ocean.main(ocean.Options(corpus=str(corpus), output_dir=str(tmp_path)))
    found = {name: tables(tmp_path / name) for name in ("train", "dev", "test")}
    assert {name: len(one["text"]) for name, one in found.items()} == {"train": 160, "dev": 20, "test": 20}
    assert [set(found[name]["utt2spk"].values()) for name in ("dev", "test")] == [{"6010"}, {"8585"}]
    assert found["train"]["text"]["000050010"] == "ITS NAME IS SAY"
    dictionary = {}
    for line in (corpus / "lexicon.txt").read_text().splitlines():
        word, phones = line.split(None, 1)
        dictionary.setdefault(word, set()).add(phones.strip())
    assert found["train"]["text-phone"]["000050003"].split()[:3] in [one.split() for one in dictionary["MIKE"]]
    assert not any("_" in phones for one in found.values() for phones in one["text-phone"].values())
    assert not (tmp_path / "train" / "phone-scores").exists()
