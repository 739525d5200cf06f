"""Stage 0 of the recipes: what the corpora hold, that their times fit the audio, and that they come out the same."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
import wave
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from miniature import load

from speechllm.errors import UserError
from speechllm.formats import corpus, kaldi

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {path.parents[2].name: path for path in ROOT.glob("egs/*/asr/local/prepare_*.py")}
MINI, FSDD = SCRIPTS["mini"], SCRIPTS["fsdd"]
sys.path.insert(0, str(ROOT / "egs" / "mini" / "local"))
import espeak  # noqa: E402


def prepare(script, folder, *words):
    command = [sys.executable, str(script), *map(str, words)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def digests(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read_ctm(path):
    """{utterance: [(label, start, end), ...]}, seconds."""
    rows = defaultdict(list)
    for line in path.read_text(encoding="utf-8").splitlines():
        key, _, start, duration, label = line.split(" ")
        rows[key].append((label, float(start), float(start) + float(duration)))
    return rows


def read_wav(path):
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        return np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(float), file.getframerate()


def loudness(samples):
    return float(np.sqrt(np.mean(samples**2)))


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    """The quick corpus, by one process."""
    folder = tmp_path_factory.mktemp("mini")
    done = prepare(MINI, folder, "++size=quick", "++nproc=1")
    assert done.returncode == 0, done.stderr
    assert "470/470" in done.stderr  # the progress bar counts utterances
    return folder


MINI_SETS = ("train", "dev", "test", "train_zh", "test_zh", "test_mix")


def test_mini_is_the_same_by_two_processes_and_after_a_kill(mini, tmp_path):
    command = [sys.executable, str(MINI), "++size=quick", "++nproc=2"]
    process = subprocess.Popen(command, cwd=tmp_path, start_new_session=True, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("data/wavs.partial/train/*.wav")):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not list(tmp_path.glob("data/*/wav.scp"))
    for _ in range(2):  # over the ruins, and over the whole
        done = prepare(MINI, tmp_path, "++size=quick", "++nproc=2")
        assert done.returncode == 0, done.stderr
        assert digests(tmp_path) == digests(mini)


def test_mini_of_another_seed_is_another(mini, tmp_path):
    plan = load(MINI, "prepare_mini").plan
    assert [one.text for one in plan("train", 50, 0)] != [one.text for one in plan("train", 50, 1)]


def test_mini_quick_is_the_first_part_of_full():
    recipe = load(MINI, "prepare_mini")
    for name, content in recipe.SETS.items():
        assert recipe.plan(name, content.full, 0)[: content.quick] == recipe.plan(name, content.quick, 0)


def test_mini_tables(mini):
    speakers = {}
    for name in MINI_SETS:
        folder = mini / "data" / name
        text, paths = kaldi.read_text(folder / "text"), kaldi.read_text(folder / "wav.scp")
        speakers[name] = kaldi.read_text(folder / "utt2spk")
        keys = list(text)
        assert keys == sorted(keys) == list(paths) == list(speakers[name])
        assert list(speakers[name].values()) == sorted(speakers[name].values())  # Kaldi sorts by speaker too
        assert set(paths.values()) == {f"data/wavs/{name}/{key}.wav" for key in keys}
        assert len(list((mini / "data" / "wavs" / name).iterdir())) == len(keys)
        for path in paths.values():
            samples, rate = read_wav(mini / path)
            assert rate == 16000
            assert 0.6 < len(samples) / rate < 6
            assert 3000 < np.abs(samples).max() < 32767
    assert not (mini / "data" / "wavs.partial").exists()
    voices = {name: set(table.values()) for name, table in speakers.items()}
    assert [len(voices[name]) for name in ("train", "dev", "test")] == [12, 4, 5]
    assert not voices["train"] & voices["dev"] | voices["train"] & voices["test"] | voices["dev"] & voices["test"]
    assert not voices["train_zh"] & (voices["test_zh"] | voices["test_mix"])


def test_mini_texts(mini):
    texts = {name: list(kaldi.read_text(mini / "data" / name / "text").values()) for name in MINI_SETS}
    words = {word for name in ("train", "dev", "test") for text in texts[name] for word in text.split()}
    assert all(re.fullmatch("[a-z]+", word) for word in words)
    assert 60 <= len(words) <= 100
    assert words == {word for text in texts["train"] for word in text.split()}  # no test word is new
    assert {len(text.split()) for text in texts["train"]} <= set(range(2, 8))
    assert np.mean([text in set(texts["train"]) for text in texts["test"]]) < 0.5  # most phrases are
    assert all(re.fullmatch(r"[\u4e00-\u9fff]+", text) for name in ("train_zh", "test_zh") for text in texts[name])
    for wanted in ("[A-Za-z]", "[0-9]", "[，。！？]", r"[\u4e00-\u9fff]"):
        assert sum(bool(re.search(wanted, text)) for text in texts["test_mix"]) > 5


@pytest.mark.parametrize("name", MINI_SETS)
def test_mini_times_fit_text_and_audio(mini, name):
    folder = mini / "data" / name
    words, phones = read_ctm(folder / "words.ctm"), read_ctm(folder / "phones.ctm")
    sounds = kaldi.read_text(folder / "text-phone")
    quiet, loud = [], []
    for key, text in kaldi.read_text(folder / "text").items():
        samples, rate = read_wav(mini / "data" / "wavs" / name / f"{key}.wav")
        assert [label for label, *_ in words[key]] == espeak.tokens(text)
        assert " ".join(label for label, *_ in phones[key] if label != "sil") == sounds[key]
        assert phones[key][0][1] == 0
        assert phones[key][-1][2] == pytest.approx(len(samples) / rate, abs=2e-4)
        assert all(end == pytest.approx(start, abs=2e-4) for (_, _, end), (_, start, _) in pairwise(phones[key]))
        assert all(end >= start for _, start, end in phones[key])
        assert all(start >= end - 2e-4 for (_, _, end), (_, start, _) in pairwise(words[key]))
        onsets = {round(start, 3) for label, start, _ in phones[key] if label != "sil"}
        for _, start, end in words[key]:
            assert round(start, 3) in onsets
            assert 0.03 < end - start < 1.4
        first, last = words[key][0][1], words[key][-1][2]
        level = loudness(samples[round(first * rate) : round(last * rate)])
        pauses = [span for span in phones[key] if span[0] == "sil" and span[2] - span[1] > 0.005]
        quiet += [loudness(samples[round(start * rate) : round(end * rate)]) / level for _, start, end in pauses]
        loud += [loudness(samples[round(start * rate) : round(end * rate)]) / level for _, start, end in words[key]]
    assert np.percentile(quiet, 99) < 0.3  # noise and echo alone
    assert np.percentile(loud, 1) > 0.3


def speak(text, voice):
    """In this process: the tests below look at times and labels, which do not hang on the library's past."""
    speak.library = getattr(speak, "library", None) or espeak.Espeak()
    return speak.library.say(text, voice, 160)


def test_a_word_begins_where_its_stop_bursts():
    speech = speak("turn on the kitchen light please call", "en-us+m3")
    words = {word: (start, end) for word, start, end in speech.words}
    # What was measured from the samples, not from events: before a burst the voice is silent, after it there is sound
    for word in ("turn", "kitchen", "please", "call"):
        onset = round(words[word][0] * speech.rate)
        assert np.abs(speech.samples[onset - 400 : onset - 50]).max() < 20
        assert loudness(speech.samples[onset : onset + 400].astype(float)) > 200
    last = round(words["call"][1] * speech.rate)
    assert loudness(speech.samples[last - 600 : last].astype(float)) > 200
    assert np.abs(speech.samples[last + 60 :]).max(initial=0) < 20


def test_words_that_the_dictionary_joins_have_times_of_their_own():
    for voice in ("en-us+f1", "en+m4"):
        text = "turn on the light in the hall for a while"
        speech = speak(text, voice)
        assert " ".join(word for word, *_ in speech.words) == text
        assert all(end - start > 0.03 for _, start, end in speech.words)


def test_tokens_of_mixed_text():
    text = "请播放 3 首 Taylor Swift 的歌，用 iPhone 把温度设到 22.5 度。"
    expected = "请 播 放 3 首 Taylor Swift 的 歌 用 iPhone 把 温 度 设 到 22.5 度"
    assert " ".join(espeak.tokens(text)) == expected
    speech = speak(text, "cmn+m2")
    assert " ".join(word for word, *_ in speech.words) == expected
    comma = next(end for word, _, end in speech.words if word == "歌")
    assert any(label == "sil" and start == comma and end - start > 0.1 for label, start, end in speech.phones)


def test_unknown_voice_is_named():
    for voice in ("en-us+f9", "klingon-x", "en-gb+m1"):  # the library itself would take the first
        with pytest.raises(UserError, match=re.escape(f"no voice {voice}")):
            speak("turn on the light", voice)


def test_a_process_that_dies_is_reported():
    with pytest.raises(UserError, match="died"):
        list(espeak.in_fresh_processes(os._exit, [3], 1))


def test_an_error_in_a_fresh_process_comes_out():
    assert list(espeak.in_fresh_processes(abs, [-1, -2, -3], 2)) == [1, 2, 3]
    with pytest.raises(TypeError):
        list(espeak.in_fresh_processes(abs, [-1, "x"], 2))


INDICES = (0, 4, 5, 7, 9, 10, 12, 14, 15, 30, 49)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A corpus in which the length of a recording tells which one it is, and its samples how loud."""
    folder = tmp_path_factory.mktemp("digits")
    (folder / "recordings").mkdir()
    rng, lengths = np.random.default_rng(1), {}
    for speaker in ("ann", "bob", "yweweler"):
        for digit in range(10):
            for index in INDICES:
                length = 900 + 2 * len(lengths)
                lengths[length] = (digit, speaker, index)
                samples = rng.normal(-200, 1000, length).round().clip(-32768, 32767).astype("<i2")
                with wave.open(str(folder / "recordings" / f"{digit}_{speaker}_{index}.wav"), "wb") as file:
                    file.setparams((1, 2, 8000, 0, "NONE", ""))
                    file.writeframes(samples.tobytes())
    return folder, lengths


@pytest.fixture(scope="module")
def strings(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsdd")
    done = prepare(FSDD, folder, f"++corpus={digits[0]}", "++size=quick")
    assert done.returncode == 0, done.stderr
    return folder


WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.mark.parametrize(
    "name, indices, count", [("train", (15, 30, 49), 400), ("dev", (10, 12, 14), 50), ("test", (5, 7, 9), 100)]
)
def test_fsdd_strings_hold_the_recordings_that_they_should(digits, strings, name, indices, count):
    home, lengths = digits
    folder = strings / "data" / name
    text, speakers = kaldi.read_text(folder / "text"), kaldi.read_text(folder / "utt2spk")
    joints, used = read_ctm(folder / "words.ctm"), defaultdict(int)
    assert list(text) == sorted(text)
    assert len(text) == count
    for key, words in text.items():
        samples, rate = read_wav(strings / kaldi.read_text(folder / "wav.scp")[key])
        assert rate == 8000
        assert words == " ".join(label for label, *_ in joints[key])
        spans = [(round(start * rate), round(end * rate)) for _, start, end in joints[key]]
        gaps = [(0, spans[0][0]), *((a[1], b[0]) for a, b in pairwise(spans)), (spans[-1][1], len(samples))]
        assert all(400 <= end - start < 2000 for start, end in gaps)
        assert all(loudness(samples[start:end]) < 1100 for start, end in gaps)
        for word, (start, end) in zip(words.split(), spans, strict=True):
            digit, speaker, index = lengths[end - start]
            assert (WORDS[digit], speaker) == (word, speakers[key])
            assert index in indices
            source, _ = read_wav(home / "recordings" / f"{digit}_{speaker}_{index}.wav")
            assert np.abs(samples[start:end] - (source - source.mean())).max() <= 0.5 + 1e-6
            used[digit, speaker, index] += 1
    assert {len(words.split()) for words in text.values()} == {1, 2, 3, 4, 5}
    assert len(used) == 2 * 10 * len(indices)
    for speaker in ("ann", "bob"):  # each has a deck that is dealt to its end
        counts = [times for (_, who, _), times in used.items() if who == speaker]
        assert max(counts) - min(counts) <= 1


def test_fsdd_comes_out_the_same_again(digits, strings, tmp_path):
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "wavs.partial" / "train").mkdir(parents=True)  # what a killed run leaves
    (tmp_path / "data" / "wavs.partial" / "train" / "x.wav").write_bytes(b"")
    assert prepare(FSDD, tmp_path, f"++corpus={digits[0]}/recordings", "++size=quick").returncode == 0
    assert digests(tmp_path) == digests(strings)


def test_fsdd_real_recordings(shared_data, tmp_path):
    if not (shared_data / "fsdd").is_dir():
        pytest.skip(f"no fsdd in {shared_data}")
    done = prepare(FSDD, tmp_path, f"++corpus={shared_data / 'fsdd'}")
    assert done.returncode == 0, done.stderr
    assert "2250 recordings used, 0 held out" in done.stderr
    counts = {name: len(kaldi.read_text(tmp_path / "data" / name / "text")) for name in ("train", "dev", "test")}
    assert counts["test"] >= 500
    assert 3000 <= counts["train"] <= 4000
    assert counts["dev"] == 200
    for name in counts:
        speakers = set(kaldi.read_text(tmp_path / "data" / name / "utt2spk").values())
        assert speakers == {"george", "jackson", "lucas", "nicolas", "theo"}


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda folder: [path.unlink() for path in folder.glob("*.wav")], "no recordings such as"),
        (lambda folder: (folder / "3_ann_30.wav").write_bytes(b"RIFF"), "3_ann_30.wav: cannot be read"),
        (lambda folder: (folder / "3_ann_30.wav").rename(folder / "x.wav") and double(folder), "there is .* too"),
        (lambda folder: [path.unlink() for path in folder.glob("*_*_5.wav")], "no recording has an index of 5 to 9"),
    ],
)
def test_fsdd_names_what_is_wrong_with_a_corpus(damage, message, tmp_path):
    folder = tmp_path / "recordings"
    folder.mkdir()
    for index in (5, 10, 30):
        with wave.open(str(folder / f"3_ann_{index}.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(np.ones(900, "<i2").tobytes())
    damage(folder)
    done = prepare(FSDD, tmp_path, f"++corpus={folder}", "++size=quick")
    assert done.returncode == 1
    assert re.search(message, done.stderr.splitlines()[-1])
    assert not list(tmp_path.glob("data/test/wav.scp"))


def double(folder):
    (folder / "copy").mkdir()
    for path in (folder / "3_ann_5.wav", folder / "copy" / "3_ann_5.wav"):
        path.write_bytes((folder / "3_ann_10.wav").read_bytes())


def test_fsdd_download_must_be_complete(monkeypatch, tmp_path, digits):
    recipe = load(FSDD, "prepare_fsdd")
    fetched = []
    monkeypatch.setattr(recipe, "fetch_unpacked", lambda url, folder: fetched.append(url) or digits[0])
    with pytest.raises(UserError, match="330 recordings, expected 3000"):
        recipe.download(tmp_path)
    assert fetched == [f"https://github.com/Jakobovski/free-spoken-digit-dataset/archive/{recipe.COMMIT}.zip"]


def test_a_quick_set_is_spread_over_the_speakers():
    recordings = {f"{speaker}-{number:03d}": None for speaker in "abcdefgh" for number in range(100)}
    chosen = corpus.spread(recordings, 16)
    assert list(chosen) == [f"{speaker}-{number}" for speaker in "abcdefgh" for number in ("000", "050")]
    assert corpus.spread(recordings, 900) == recordings


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_unknown_option_is_refused(script, tmp_path):
    done = prepare(script, tmp_path, "++sise=quick")
    assert done.returncode == 2
    assert "sise" in done.stderr and "size" in done.stderr
    assert list(tmp_path.iterdir()) == []
