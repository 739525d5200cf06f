"""Rows for forced alignment: from folders and tables, each word with its time, or a reason why not."""

import importlib.util
import json
import sys

import numpy as np
import pytest
import soundfile
from conftest import ROOT
from test_times import LONG

from speechllm import cli
from speechllm.errors import UserError
from speechllm.formats.aligner_data import Rules, matched, mend, parted
from speechllm.formats.jsonl import JsonlFile
from speechllm.formats.times.word import Word

ENGLISH = Rules("English", "words", False, 0.01)
FRAMES = 24001  # 1.5000625 s


@pytest.fixture
def place(tmp_path):
    """``place(name, text)`` writes a file below two folders, audio/ and text/; a sound where no text is given."""

    def put(name, text=None):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            soundfile.write(path, np.full(FRAMES, 0.1), 16000)
        else:
            path.write_text(text, encoding="utf-8")
        return path

    return put


@pytest.fixture
def prepare(tmp_path, monkeypatch, caplog):
    """Runs the tool in this process, since libraries take seconds to load: its error or log, and the rows."""
    spec = importlib.util.spec_from_file_location("prepare_aligner_data", ROOT / "tools" / "prepare_aligner_data.py")
    tool = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, tool)
    spec.loader.exec_module(tool)
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")

    def run(*words, folders=("++audio_dir=audio", "++text_dir=text")):
        caplog.clear()
        rows, said = tmp_path / "rows.jsonl", ""
        rows.unlink(missing_ok=True)
        try:
            tool.main(cli.parse(tool.Options, [*folders, "++output_file=rows.jsonl", *words]))
        except UserError as error:
            return f"error: {error}", []
        said = "\n".join(record.getMessage() for record in caplog.records)
        return said, [json.loads(line) for line in rows.read_text("utf-8").splitlines()]

    return run


def test_folders_with_every_format(place, prepare, tmp_path):
    grid = LONG.replace('say ""hi"" 7', "say").replace("intervals [4]", "Hello").replace("你好", "you")
    place("audio/b/grid.wav"), place("text/b/grid.TextGrid", grid), place("text/b/grid.txt", "Say: hello,\nyou!\n")
    place("audio/cut.flac"), place("text/cut.ctm", "whatever 1 0.1 0.2 one 0.9\nwhatever 1 0.3 0.4 two\n")
    place("audio/plain.wav"), place("text/plain.txt", "no times here")
    place("audio/sub title.wav"), place("text/sub title.srt", "1\n00:00:00,100 --> 00:00:01,000\none\n")
    place("audio/SA1.WAV"), place("text/SA1.WRD", "800 8000 she\n8000 16000 had\n"), place("text/SA1.PHN", "0 8 h#\n")
    place("text/SA1.TXT", "0 24000 She had.\n"), place("audio/notes.doc", "x")
    done, rows = prepare("++language=English")
    assert [row["key"] for row in rows] == ["SA1", "b/grid", "cut", "plain", "sub_title"]
    assert list(rows[1]) == ["audio_path", "text", "timestamps", "key", "speech_length", "language"]
    assert rows[1]["audio_path"] == "audio/b/grid.wav" and rows[1]["text"] == "Say: hello, you!"
    assert rows[1]["timestamps"] == [[0.25, 0.5], [0.5, 0.9], [0.9, 1.5]] and rows[1]["language"] == "English"
    assert rows[1]["speech_length"] == 148  # (1500.0625 - 25) // 10 + 1
    assert rows[0]["text"] == "She had." and rows[0]["timestamps"] == [[0.05, 0.5], [0.5, 1.0]]
    assert rows[2]["text"] == "one two" and rows[2]["timestamps"] == [[0.1, 0.3], [0.3, 0.7]]
    assert rows[3]["timestamps"] == [] and rows[4]["timestamps"] == [[0.1, 1.0]]
    left = (tmp_path / "rows.jsonl.left").read_text().splitlines()
    assert [line.split("\t")[0] for line in left] == ["audio/notes.doc", "text/SA1.PHN"]
    assert "1 .doc, 1 .PHN" in done and "times of 4 utterances" in done
    assert len(JsonlFile(str(tmp_path / "rows.jsonl"))) == 5


def test_what_has_no_counterpart_is_named(place, prepare, tmp_path):
    place("audio/good.wav"), place("text/good.txt", "good")
    place("audio/lonely.wav"), place("text/silent.TextGrid", LONG)
    place("audio/twice.wav"), place("audio/twice.flac"), place("text/twice.txt", "twice")
    place("audio/timed.wav"), place("text/timed.wrd", "0 8 x\n"), place("text/timed.srt", "")
    place("audio/broken.wav", "no sound"), place("text/broken.txt", "broken")
    place("audio/empty.wav"), place("text/empty.txt", "...\n")
    done, rows = prepare()
    assert done.startswith("error: 6 bad row(s), 0 allowed") and not rows
    done, rows = prepare("++max_bad=6")
    assert [row["key"] for row in rows] == ["good"]
    bad = dict(line.split("\t")[::2] for line in (tmp_path / "rows.jsonl.bad").read_text().splitlines())
    assert list(bad) == ["lonely", "silent", "timed", "twice", "broken", "empty"]
    assert "neither text nor times" in bad["lonely"] and "no audio" in bad["silent"]
    assert "audio/twice.flac, audio/twice.wav" in bad["twice"] and "text/timed.srt, text/timed.wrd" in bad["timed"]
    assert "not an audio file" in bad["broken"] and "no word in the text '...'" in bad["empty"]


def test_one_folder_for_all(place, prepare, tmp_path):
    place("a.wav"), place("a.txt", "one"), place("b.md", "x")
    _, rows = prepare("++max_bad=9", folders=("--audio_dir", ".", "--text_dir", "."))
    assert [row["key"] for row in rows] == ["a"]
    assert (tmp_path / "rows.jsonl.left").read_text().startswith("./b.md\t")


def test_kaldis_tables(place, prepare, tmp_path):
    place("a.wav")
    (tmp_path / "wav.scp").write_text("rec a.wav\n")
    (tmp_path / "segments").write_text("u1 rec 0.0 0.5\nu2 rec 0.5 1.5\nu3 rec 0 1\n")
    (tmp_path / "text").write_text("u1 一二\nu2 Well, three\nu3 four\n")
    (tmp_path / "words.ctm").write_text(
        "u1 1 0 0.2 一\nu1 1 0.2 0.3 二\nu2 1 0.1 0.4 well\nu2 1 0.51 0.4 three\nx 1 0 1 y\n"
    )
    words = ["++scp_file=wav.scp", "++transcript_file=text", "++segments_file=segments"]
    done, rows = prepare("++ctm_file=words.ctm", folders=words)
    assert done.startswith("error: 2 bad row(s)")
    bad = (tmp_path / "rows.jsonl.bad").read_text().splitlines()
    assert bad[0].startswith("x\twords.ctm:5\ttimes of an utterance without audio and text")
    assert bad[1].startswith("u3\tsegments:3\twords.ctm has no times of it")
    done, rows = prepare("++ctm_file=words.ctm", "++max_bad=2", folders=words)
    assert [row["timestamps"] for row in rows] == [[[0, 0.2], [0.2, 0.5]], [[0.1, 0.5], [0.51, 0.91]]]
    assert [(row["start"], row["end"]) for row in rows] == [(0.0, 0.5), (0.5, 1.5)]
    done, rows = prepare(folders=words)
    assert [row["timestamps"] for row in rows] == [[]] * 3


def test_phones_of_timit(place, prepare):
    place("audio/a.wav"), place("text/a.wrd", "0 8000 she\n"), place("text/a.phn", "0 80 h#\n80 800 sh\n800 8000 iy\n")
    assert prepare()[1][0]["text"] == "she"
    _, (row,) = prepare("++tier=phones")
    assert row["text"] == "sh iy" and row["timestamps"] == [[0.005, 0.05], [0.05, 0.5]]


def test_options_that_do_not_go_together(prepare):
    for words in ((), ("++audio_dir=a",), ("++scp_file=a",), ("++audio_dir=a", "++text_dir=b", "++scp_file=c")):
        done, _ = prepare(folders=words)
        assert "++audio_dir and ++text_dir are needed, or" in done


def test_times_beyond_the_audio_or_out_of_order(place, prepare, tmp_path):
    ends = {"a": "0.5 1.0000625", "b": "0.5 1.0095", "c": "0.5 1.02", "d": "0.29 0.3", "e": "0.285 0.3"}
    for key, end in ends.items():
        place(f"audio/{key}.wav")
        place(f"text/{key}.ctm", f"{key} 1 0.1 0.2 one\n{key} 1 {end} two\n")
    done, rows = prepare("++max_bad=2")
    assert "2 boundaries mended" in done
    assert [row["key"] for row in rows] == ["a", "b", "d"]
    assert rows[1]["timestamps"][1][1] == pytest.approx(FRAMES / 16000, abs=1e-6)
    assert rows[2]["timestamps"] == [[0.1, 0.295], [0.295, 0.59]]
    bad = (tmp_path / "rows.jsonl.bad").read_text().splitlines()
    assert bad[0].startswith("c\taudio/c.wav\ttext/c.ctm: the last word ends at 1.52 s, and the audio at 1.50007 s")
    assert bad[1].startswith("e\taudio/e.wav\ttext/e.ctm: word 2 starts at 0.285 s, before its neighbour ends at 0.3 s")
    assert prepare("++max_bad=1", "++overlap=0.015")[1][-1]["timestamps"] == [[0.1, 0.2925], [0.2925, 0.585]]


def test_mending_leaves_what_is_out_of_order():
    assert mend([Word("a", 0.2, 0.3), Word("b", 0.1, 0.15)], 1.0, 0.5)[1] == 0
    assert mend([Word("a", 0.0, 0.1), Word("b", 0.1, 0.2)], 1.0) == (((0.0, 0.1), (0.1, 0.2)), 0)


@pytest.mark.parametrize(
    ("text", "timed", "message"),
    [
        (
            "a b c",
            ["a", "b"],
            r"3 words in the text, 2 with times; .* \['a', 'b', 'c'\], those with times \['a', 'b'\]",
        ),
        ("it's 5", ["its", "five"], r"word 2 is '5' in the text, 'five' in the times; .* \['its', 'five'\]"),
        ("a b", ["a b"], r"'a b' from 0 to 1 s is 2 words, \['a', 'b'\]; .*\+\+share=true"),
        ("a", ["..."], r"no word in it, and the text has \['a'\]"),
    ],
)
def test_words_that_do_not_match(text, timed, message):
    with pytest.raises(UserError, match=rf"w\.ctm: {message}"):
        matched([Word(word, i, i + 1) for i, word in enumerate(timed)], text, ENGLISH, "w.ctm")


def test_case_and_punctuation_do_not_matter_and_the_text_stays():
    timed = [Word("dont", 0.0, 0.5), Word("…", 0.5, 0.6), Word("STOP,", 0.6, 1.0)]
    text, words = matched(timed, "Don't — stop!", ENGLISH, "")
    assert text == "Don't — stop!" and [word[1:3] for word in words] == [(0.0, 0.5), (0.6, 1.0)]
    assert matched(timed, "", ENGLISH, "")[0] == "dont STOP,"


def test_a_time_is_shared_out_by_letters():
    shared = list(parted(Word("今天 ok", 1.0, 2.0), ENGLISH._replace(share=True), ""))
    assert shared == [Word("今", 1.0, 1.25), Word("天", 1.25, 1.5), Word("ok", 1.5, 2.0)]


def test_timit(shared_data, tool, tmp_path):
    """The sample's words overlap where they share a phone; its times are in samples, as in its own files."""
    folder = shared_data / "timit_sample"
    words = [f"++audio_dir={folder}", f"++text_dir={folder}", "++output_file=t.jsonl", "++language=English"]
    done = tool("prepare_aligner_data", *words, "++overlap=0.15", "++max_bad=9")
    assert done.returncode == 0, done.stderr
    rows = {row["key"]: row for row in map(json.loads, (tmp_path / "t.jsonl").read_text().splitlines())}
    assert len(rows) == 115 and "11 boundaries mended" in done.stderr  # 5 have hyphens in the text alone, with 2 of 13
    row, told = rows["dr1-fvmh0/sa1"], (folder / "dr1-fvmh0" / "sa1.wrd").read_text().split()
    assert row["text"].startswith("She had your dark suit") and len(row["timestamps"]) * 3 == len(told)
    assert np.allclose(np.ravel(row["timestamps"]) * 16000, [int(n) for n in told if n.isdigit()], atol=0.02)
