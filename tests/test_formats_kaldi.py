"""Kaldi's tables: what they hold, and what is said about a bad line."""

import subprocess

import numpy as np
import pytest
import soundfile

from speechllm import audio
from speechllm.errors import UserError
from speechllm.formats import kaldi
from speechllm.sample import Clip, Prompt


@pytest.fixture
def table(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def faults_of(reader, path):
    found = []
    table = reader(path, lambda *fault: found.append(fault))
    return table, found


def test_tabs_blanks_line_ends_and_a_byte_order_mark(table):
    path = table("text", b"\xef\xbb\xbfa\tone two\r\n\nb   three  four \n" + "丙 全　角 \u2028 x".encode())
    assert kaldi.read_text(path) == {"a": "one two", "b": "three  four", "丙": "全　角 \u2028 x"}
    assert kaldi.read_table(path)["b"] == ("three  four", f"{path}:3")


def test_paths_may_have_blanks(table):
    path = table("wav.scp", "a /data/my speech/a 1.wav\nb flac -c -d 'b b.flac' |\nc http://x/c.wav\nd x.ark:12\n")
    clips = kaldi.clips(kaldi.read_table(path))
    sources = ["/data/my speech/a 1.wav", "flac -c -d 'b b.flac' |", "http://x/c.wav", "x.ark:12"]
    assert [clip for clip, _ in clips.values()] == [Clip(source) for source in sources]


@pytest.mark.parametrize(
    ("content", "line", "key", "reason"),
    [
        ("a 1\nb 2\na 3\n", 3, "a", "the id stands on line 1 already"),
        ("a 1\nb\n", 2, "b", "nothing follows the id"),
        (b"a 1\nb \xc3\x28\n", 2, "b", "not UTF-8"),
        (b"a 1\n\xff 2\n", 2, "\ufffd", "not UTF-8"),
    ],
)
def test_a_bad_line_is_named_and_the_others_are_read(table, content, line, key, reason):
    path = table("text", content)
    with pytest.raises(UserError) as caught:
        kaldi.read_table(path)
    assert str(caught.value).startswith(f"{path}:{line}: {key}: {reason}")
    rows, found = faults_of(kaldi.read_table, path)
    assert [(fault[0], fault[1]) for fault in found] == [(key, f"{path}:{line}")]
    assert rows["a"] == ("1", f"{path}:1")


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(UserError, match=r"wav\.scp: no such file"):
        kaldi.read_table(tmp_path / "wav.scp")


@pytest.mark.parametrize(
    "line",
    ["u r 1.0", "u r one 2.0", "u r 2.0 1.0", "u r 1.0 1.0", "u r -1 1.0", "u r 0 nan", "u r 0 inf", "u r 0 1 2"],
)
def test_bad_segments(table, line):
    path = table("segments", f"a r 0 1.5\n{line}\n")
    rows, found = faults_of(kaldi.read_segments, path)
    assert rows == {"a": (kaldi.Segment("r", 0.0, 1.5), f"{path}:1")}
    assert found[0][:2] == ("u", f"{path}:2") and line[2:] in found[0][2]


def test_a_speaker_is_one_word(table):
    path = table("utt2spk", "a s1\nb s 2\n")
    rows, found = faults_of(kaldi.read_utt2spk, path)
    assert rows == {"a": ("s1", f"{path}:1")} and found[0][:2] == ("b", f"{path}:2")


def test_hotwords_are_parted_by_commas_of_both_scripts_and_may_hold_blanks(table):
    path = table("hotwords", "a Fun ASR,开放时间，甲 , b\nb one\nc , ，\n")
    rows, found = faults_of(kaldi.read_hotwords, path)
    assert rows == {"a": ["Fun ASR", "开放时间", "甲", "b"], "b": ["one"]}
    assert found[0][:2] == ("c", f"{path}:3") and "`utterance word,word ...` expected" in found[0][2]


def test_segments_cut_recordings_and_an_unknown_one_is_named(table):
    scp = table("wav.scp", "r1 /one.wav\nr2 /two.wav\n")
    segments = table("segments", "u3 r2 0.5 1.0\nu1 r1 0 1\nu2 r9 0 1\n")
    found = []
    clips = kaldi.clips(kaldi.read_table(scp), kaldi.read_segments(segments), lambda *fault: found.append(fault))
    assert clips == {
        "u3": (Clip("/two.wav", 0.5, 1.0), f"{segments}:1"),
        "u1": (Clip("/one.wav", 0.0, 1.0), f"{segments}:2"),
    }
    assert list(clips) == ["u3", "u1"]
    assert found[0][:2] == ("u2", f"{segments}:3") and "r9 is not in wav.scp" in found[0][2]


def test_samples_keep_their_order_and_the_unreadable_its_place(table, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(16000), 16000)
    scp = table("wav.scp", f"z {tmp_path}/a.wav\nb /missing.wav\na {tmp_path}/a.wav\n")
    found = kaldi.samples(scp, prompt=Prompt(before="x"))
    assert [(one.key, one.speech_length, one.where) for one in found] == [
        ("z", 98, f"{scp}:1"),
        ("b", 0, f"{scp}:2"),
        ("a", 98, f"{scp}:3"),
    ]
    assert found[0].prompt.before == "x" and found[0].text is None
    with pytest.raises(audio.AudioError, match=r"/missing\.wav: no such file"):
        audio.read(found[1].clip)
    segments = table("segments", "u z 0.5 0.75\n")
    assert [(one.clip.start, one.speech_length) for one in kaldi.samples(scp, segments)] == [(0.5, 23)]


def test_hotwords_reach_the_prompts_of_their_utterances(table, tmp_path):
    scp = table("wav.scp", "a /a.wav\nb /b.wav\n")
    found = kaldi.samples(scp, prompt=Prompt(before="x"), hotwords={"b": ["one", "two"]})
    assert found[0].prompt.before == "x"
    assert "热词列表：[one, two]" in found[1].prompt.before and found[1].prompt.before.endswith("x")
    with pytest.raises(UserError, match=r"hotwords of c: .*wav\.scp does not have it"):
        kaldi.samples(scp, hotwords={"b": ["one"], "c": ["two"]})


def test_a_written_table_is_sorted_as_the_c_locale_sorts(tmp_path):
    keys = ["b", "a-b", "a_b", "aB", "Ab", "a1", "语", "é", "a", "𝒜", "～"]
    kaldi.write_table(tmp_path / "text", {key: f"words of {key}" for key in keys})
    content = (tmp_path / "text").read_bytes()
    command = {"args": ["sort"], "env": {"LC_ALL": "C", "PATH": "/usr/bin:/bin"}}
    assert content == subprocess.run(**command, input=content, capture_output=True, check=True).stdout
    assert kaldi.read_text(tmp_path / "text") == {key: f"words of {key}" for key in keys}


@pytest.mark.parametrize("row", [("two words", "x"), ("", "x"), ("a", ""), ("a", " "), ("a", "x\ny")])
def test_what_is_not_a_row_is_not_written(tmp_path, row):
    kaldi.write_table(tmp_path / "text", {"a": "before"})
    with pytest.raises(UserError, match="is not a row"):
        kaldi.write_table(tmp_path / "text", {"0": "fine", row[0]: row[1]})
    assert (tmp_path / "text").read_text() == "a before\n"
    assert [path.name for path in tmp_path.iterdir()] == ["text"]
