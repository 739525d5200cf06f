"""scp2jsonl, validate_data and fix_data as a user runs them, on good folders and on each fault of the contract."""

import json
import os

import numpy as np
import pytest
import soundfile
from byte_tokenizer import make_tokenizer

from speechllm.formats.jsonl import JsonlFile
from speechllm.formats.kaldi import write_table

WORDS = {"u1": "one two", "u2": "three", "u3": "今天 four", "u4": "five six"}
SECONDS = {"u1": 1.0, "u2": 0.5, "u3": 0.25, "u4": 2.0}


def tone(seconds, rate=16000):
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.fixture
def data(tmp_path):
    """A folder of four good utterances."""
    folder = tmp_path / "data"
    folder.mkdir()
    for key, seconds in SECONDS.items():
        soundfile.write(folder / f"{key}.wav", tone(seconds), 16000)
    write_table(folder / "wav.scp", {key: f"{folder}/{key}.wav" for key in WORDS})
    write_table(folder / "text", WORDS)
    write_table(folder / "utt2spk", {key: f"s{key[1:]}" for key in WORDS})
    return folder


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def scp2jsonl(tool, data, tokenizer):
    def run(*more):
        words = [f"++scp_file={data}/wav.scp", f"++transcript_file={data}/text", f"++jsonl_file={data}.jsonl"]
        return tool("scp2jsonl", *words, f"++tokenizer={tokenizer}", *more)

    return run


def rows_of(data):
    with open(f"{data}.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def bad_of(data):
    with open(f"{data}.jsonl.bad", encoding="utf-8") as file:
        return file.read().splitlines()


def replace(path, old, new):
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")


# Each fault of the contract: what breaks the folder, the id and the place that are named, and the words of the reason.


def missing_wav(data):
    (data / "u2.wav").unlink()


def truncated_wav(data):
    os.truncate(data / "u2.wav", 5000)


def empty_wav(data):
    os.truncate(data / "u2.wav", 0)


def wav_without_samples(data):
    soundfile.write(data / "u2.wav", tone(0.0), 16000)


def short_wav(data):
    soundfile.write(data / "u2.wav", tone(0.024), 16000)


def not_audio(data):
    (data / "u2.wav").write_text("404 not found\n" * 9)


def text_without_audio(data):
    replace(data / "wav.scp", f"u2 {data}/u2.wav\n", "")


def audio_without_text(data):
    replace(data / "text", "u2 three\n", "")


def no_words(data):
    replace(data / "text", "u2 three\n", "u2\n")


def not_utf8(data):
    (data / "text").write_bytes((data / "text").read_bytes().replace(b"three", b"thr\xe9e"))


def pipe(data):
    replace(data / "wav.scp", f"{data}/u2.wav", f"cat {data}/u2.wav |")


FAULTS = [
    (missing_wav, "wav.scp:2", "no such file"),
    (truncated_wav, "wav.scp:2", "truncated: its header promises 16000 bytes of samples, the file holds 4956"),
    (empty_wav, "wav.scp:2", "the file is empty"),
    (wav_without_samples, "wav.scp:2", "no samples"),
    (short_wav, "wav.scp:2", "too short"),
    (not_audio, "wav.scp:2", "not an audio file"),
    (text_without_audio, "text:2", "text without audio"),
    (audio_without_text, "wav.scp:2", "audio without text"),
    (no_words, "text:2", "nothing follows the id"),
    (not_utf8, "text:2", "not UTF-8"),
    (pipe, "wav.scp:2", "++allow_pipes=true"),
]
every_fault = pytest.mark.parametrize(
    ("damage", "place", "reason"), FAULTS, ids=[fault[0].__name__ for fault in FAULTS]
)


@every_fault
def test_scp2jsonl_names_the_bad_row_and_can_leave_it_out(data, scp2jsonl, damage, place, reason):
    damage(data)
    done = scp2jsonl()
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert last.startswith("error: 1 bad row(s), 0 allowed; the first: u2 ") and last.count(reason) == 1
    assert f"({data}/{place})" in last and last.endswith("or allow them with ++max_bad=1")
    assert not os.path.exists(f"{data}.jsonl")
    (listed,) = bad_of(data)
    assert listed.startswith(f"u2\t{data}/{place}\t") and reason in listed

    done = scp2jsonl("++max_bad=1")
    assert done.returncode == 0, done.stderr
    assert [row["key"] for row in rows_of(data)] == ["u1", "u3", "u4"]
    assert bad_of(data) == [listed]


@every_fault
def test_validate_names_the_fault_and_fix_drops_it(data, tool, damage, place, reason):
    damage(data)
    done = tool("validate_data", data)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    faults = [line for line in done.stdout.splitlines() if line.startswith(f"{data}/")]
    assert len(faults) == 1 and faults[0].startswith(f"{data}/{place}: u2: ") and reason in faults[0]
    assert f"error: {data}: 1 fault(s), 3 good utterances" in done.stderr

    before = {name: (data / name).read_bytes() for name in ("wav.scp", "text", "utt2spk")}
    done = tool("fix_data", data)
    assert done.returncode == 0, done.stderr
    for name, content in before.items():
        assert (data / ".backup" / name).read_bytes() == content
        rest = b"".join(line for line in content.splitlines(keepends=True) if not line.startswith(b"u2"))
        assert (data / name).read_bytes() == rest
    assert (data / "fix.reasons").read_text(encoding="utf-8").startswith(f"u2\t{data}/{place}\t")
    assert tool("validate_data", data).returncode == 0


def test_a_nan_is_found_by_decode(data, tool):
    wave = tone(0.5)
    wave[4000] = np.nan
    soundfile.write(data / "u2.wav", wave, 16000, subtype="FLOAT")
    assert tool("validate_data", data).returncode == 0  # headers alone
    done = tool("validate_data", data, "++decode=true")
    assert done.returncode == 1
    assert f"{data}/wav.scp:2: u2: {data}/u2.wav: NaN or infinite samples, the first at 0.250 s" in done.stdout
    assert tool("fix_data", data, "++decode=true").returncode == 0
    assert tool("validate_data", data, "++decode=true").returncode == 0


def test_a_duplicated_id_names_both_lines(data, tool, scp2jsonl):
    with open(data / "wav.scp", "a", encoding="utf-8") as file:
        file.write(f"u2 {data}/u4.wav\n")
    expected = f"{data}/wav.scp:5: u2: the id stands on line 2 already"
    done = tool("validate_data", data)
    assert done.returncode == 1 and expected in done.stdout
    assert scp2jsonl().returncode == 1
    assert scp2jsonl("++max_bad=1").returncode == 0
    assert [(row["key"], row["speech_length"]) for row in rows_of(data)][1] == ("u2", 48)  # the first one


@pytest.mark.parametrize("name", ["scp2jsonl", "validate_data", "fix_data"])
def test_an_unknown_option_is_refused_with_the_nearest_name(data, tool, name):
    done = tool(name, "++max_wokers=3")
    assert done.returncode == 2 and "unknown option max_wokers. Did you mean max_workers?" in done.stderr
    done = tool(name)
    assert done.returncode == 2 and "required" in done.stderr and "Traceback" not in done.stderr


# scp2jsonl


def test_rows_are_those_of_upstream_with_a_key_in_scp_order(data, tool, scp2jsonl):
    lines = (data / "wav.scp").read_text().splitlines(keepends=True)
    (data / "wav.scp").write_text("".join(reversed(lines)))
    done = scp2jsonl("++max_workers=3")
    assert done.returncode == 0, done.stderr
    rows = rows_of(data)
    assert [row["key"] for row in rows] == ["u4", "u3", "u2", "u1"]
    assert rows[1] == {
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": f"语音转写：<|startofspeech|>!{data}/u3.wav<|endofspeech|>"},
            {"role": "assistant", "content": "今天 four"},
        ],
        "speech_length": 23,  # int((250 - 25) // 10 + 1)
        "text_length": 11,  # bytes: 3 + 3 + 1 + 4
        "key": "u3",
    }
    assert [row["speech_length"] for row in rows] == [198, 23, 48, 98]
    assert not os.path.exists(f"{data}.jsonl.bad")
    assert [sample.text for sample in JsonlFile(f"{data}.jsonl")] == [WORDS[row["key"]] for row in rows]


def test_segments(data, scp2jsonl):
    write_table(data / "segments", {"a": "u4 0.5 1.5", "b": "u4 1.5 2.0", "c": "u1 0 3.0"})
    write_table(data / "text", {"a": "x", "b": "y", "c": "z"})
    done = scp2jsonl(f"++segments_file={data}/segments", "++max_bad=3")
    assert done.returncode == 0, done.stderr
    assert [(row["key"], row["start"], row["end"], row["speech_length"]) for row in rows_of(data)] == [
        ("a", 0.5, 1.5, 98),
        ("b", 1.5, 2.0, 48),
    ]
    bad = "\n".join(bad_of(data))
    assert "the clip goes from 0.000 to 3.000 s, the recording to 1.000 s" in bad
    assert bad.count("has nothing of this recording") == 2  # u2 and u3


@pytest.mark.parametrize(
    ("words", "prompt"),
    [
        (["++prompt=Speech transcription: "], "Speech transcription: "),
        (["++language=en"], "语音转写成英文："),
        (["++itn=false"], "语音转写，不进行文本规整："),
    ],
)
def test_prompts(data, scp2jsonl, words, prompt):
    assert scp2jsonl(*words).returncode == 0
    assert all(row["messages"][1]["content"].startswith(f"{prompt}<|startofspeech|>!") for row in rows_of(data))


def test_prompt_contradicts_language(data, scp2jsonl):
    done = scp2jsonl("++prompt=x", "++language=en")
    assert done.returncode == 1 and "leave out ++language and ++itn, or ++prompt" in done.stderr


def test_a_failed_run_leaves_an_older_jsonl_as_it_was(data, scp2jsonl):
    assert scp2jsonl().returncode == 0
    before = rows_of(data)
    missing_wav(data)
    assert scp2jsonl().returncode == 1
    assert rows_of(data) == before
    assert sorted(name for name in os.listdir(data.parent) if name != "data") == ["data.jsonl", "data.jsonl.bad"]


def test_a_tokenizer_that_is_nowhere(data, tool):
    done = tool(
        "scp2jsonl",
        *[f"++scp_file={data}/wav.scp", f"++transcript_file={data}/text", f"++jsonl_file={data}.jsonl"],
        "++tokenizer=./nowhere",
    )
    assert (
        done.returncode == 1 and "error: ./nowhere: no such folder" in done.stderr and "++tokenizer=DIR" in done.stderr
    )


def test_many_rows_keep_their_order(tmp_path, data, scp2jsonl):
    keys = [f"u{i:04d}" for i in range(3000)]
    write_table(data / "wav.scp", {key: f"{data}/u{1 + i % 4}.wav" for i, key in enumerate(keys)})
    write_table(data / "text", {key: key * (1 + i % 3) for i, key in enumerate(keys)})
    assert scp2jsonl("++max_workers=8").returncode == 0
    rows = rows_of(data)
    assert [row["key"] for row in rows] == keys
    assert [row["speech_length"] for row in rows[:4]] == [98, 48, 23, 198]
    assert all(row["text_length"] == 5 * (1 + i % 3) for i, row in enumerate(rows))


# validate_data and fix_data


def test_a_good_folder(data, tool):
    done = tool("validate_data", f"++data_dir={data}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{data}: 4 good utterances, 0.00 h, 4 speakers\n"
    done = tool("fix_data", data)
    assert done.returncode == 0 and "nothing to change" in done.stderr
    assert sorted(os.listdir(data)) == ["text", "u1.wav", "u2.wav", "u3.wav", "u4.wav", "utt2spk", "wav.scp"]


def test_validate_reports_all_faults_at_once(data, tool):
    missing_wav(data)
    empty = data / "u3.wav"
    os.truncate(empty, 0)
    with open(data / "text", "a", encoding="utf-8") as file:
        file.write("u0 zero\nu5\n")
    replace(data / "utt2spk", "u4 s4\n", "u9 s9\n")
    done = tool("validate_data", data)
    found = {tuple(line.split(": ")[:2]) for line in done.stdout.splitlines()[:-1]}
    assert found == {
        (f"{data}/wav.scp:2", "u2"),
        (f"{data}/wav.scp:3", "u3"),
        (f"{data}/text:5", "u0"),  # without audio, and not in its place
        (f"{data}/text:6", "u5"),
        (f"{data}/utt2spk:4", "u9"),
        (f"{data}/wav.scp:4", "u4"),
    }
    assert done.returncode == 1 and "error: " in done.stderr and "7 fault(s), 1 good utterances" in done.stderr
    assert tool("fix_data", data).returncode == 0
    assert (data / "text").read_text() == "u1 one two\n"
    assert len((data / "fix.reasons").read_text().splitlines()) == 6


def test_fix_sorts(data, tool):
    before = {}
    for name in ("wav.scp", "text"):
        before[name] = (data / name).read_bytes()
        (data / name).write_bytes(b"".join(reversed(before[name].splitlines(keepends=True))).replace(b" ", b"\t", 1))
    done = tool("validate_data", data)
    assert done.returncode == 1 and "wav.scp:2: u3: wav.scp is not sorted: u4 stands before it" in done.stdout
    assert done.stdout.count("is not sorted") == 2
    assert tool("fix_data", data).returncode == 0
    assert all((data / name).read_bytes() == content for name, content in before.items())
    assert not (data / "fix.reasons").exists()


def test_fix_with_segments_drops_recordings_out_of_use(data, tool):
    write_table(data / "segments", {"a": "u4 0.5 1.5", "b": "u2 0.0 9.0"})
    write_table(data / "text", {"a": "x", "b": "y"})
    write_table(data / "utt2spk", {"a": "s", "b": "s"})
    assert tool("validate_data", data).stdout.count("has nothing of this recording") == 2
    assert tool("fix_data", data).returncode == 0
    assert (data / "wav.scp").read_text() == f"u4 {data}/u4.wav\n"
    assert (data / "segments").read_text() == "a u4 0.5 1.5\n"
    assert tool("validate_data", data).stdout == f"{data}: 1 good utterances, 0.00 h, 1 speakers\n"


def test_hotwords_belong_to_the_folder(data, tool):
    (data / "hotwords").write_text("u1 one,two\nu2 ,\nu7 x\nu4 six\n", encoding="utf-8")
    done = tool("validate_data", data)
    assert done.returncode == 1 and "4 good utterances" in done.stdout
    assert f"{data}/hotwords:2: u2: `utterance word,word ...` expected" in done.stdout
    assert f"{data}/hotwords:3: u7: hotwords of an utterance without audio and text" in done.stdout
    assert f"{data}/hotwords:4: u4: hotwords is not sorted: u7 stands before it" in done.stdout
    assert tool("fix_data", data).returncode == 0
    assert (data / "hotwords").read_text() == "u1 one,two\nu4 six\n"
    assert tool("validate_data", data).returncode == 0


def test_fix_does_not_empty_a_folder(data, tool):
    for key in WORDS:
        (data / f"{key}.wav").unlink()
    before = (data / "wav.scp").read_bytes()
    done = tool("fix_data", data)
    assert done.returncode == 1 and "nothing was changed" in done.stderr
    assert (data / "wav.scp").read_bytes() == before


def test_a_missing_file_of_the_folder_is_named(data, tool):
    (data / "text").unlink()
    for name in ("validate_data", "fix_data"):
        done = tool(name, data)
        assert done.returncode == 1 and f"error: {data}/text: no such file" in done.stderr


def test_a_real_kaldi_folder(shared_data, tmp_path, tool, tokenizer):
    """Ten speakers of speechocean762, whose wav.scp has paths relative to the corpus."""
    corpus, folder = shared_data / "speechocean762_part", tmp_path / "corpus"
    lines = (corpus / "wav.scp").read_text().splitlines()
    write_table(folder / "wav.scp", {key: str(corpus / path) for key, path in (line.split() for line in lines)})
    for name in ("text", "utt2spk"):
        write_table(folder / name, dict(line.split(None, 1) for line in (corpus / name).read_text().splitlines()))
    done = tool("validate_data", folder, "++decode=true")
    hours = sum(soundfile.info(path).duration for path in corpus.rglob("*.WAV")) / 3600
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == f"{folder}: 200 good utterances, {hours:.2f} h, 10 speakers\n"
