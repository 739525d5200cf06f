"""Conversation rows to ChatML rows, and prompts that say where the audio stands."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
from byte_tokenizer import make_tokenizer
from conftest import ROOT

from speechllm.errors import UserError
from speechllm.formats import conversations
from speechllm.formats.jsonl import JsonlFile
from speechllm.formats.kaldi import write_table
from speechllm.formats.prompts import own_prompt
from speechllm.sample import Clip, Prompt


def row(path, answer="sil sh iy", question="请你做语音评测", **more):
    turns = [("user", f"<audio>{path}</audio>{question}"), ("assistant", answer)]
    return {"conversations": [{"from": name, "value": text} for name, text in turns], **more}


def turns(*said):
    return {"conversations": [{"from": name, "value": text} for name, text in said]}


USER = ("user", "<audio>a.wav</audio>?")


@pytest.fixture
def home(tmp_path):
    soundfile.write(tmp_path / "sa1.wav", np.full(16000, 0.1), 16000)
    make_tokenizer(tmp_path)
    return tmp_path


def write(path, rows, as_list=False):
    lines = [json.dumps(one, ensure_ascii=False) for one in rows]
    path.write_text(f"[{', '.join(lines)}]" if as_list else "\n".join(lines) + "\n", encoding="utf-8")
    return path


def convert(tool, home, path, *more):
    return tool("scp2jsonl", f"++conversations={path}", f"++tokenizer={home}", f"++jsonl_file={home}/out.jsonl", *more)


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("as_list", [True, False])
def test_each_row_brings_its_prompt(tool, home, as_list):
    wav = home / "sa1.wav"
    said = [
        row(wav),
        row(wav, "語 ə", "say it", id="b-2"),
        turns(("system", "Be exact."), ("user", f"Listen: <audio> {wav} </audio>\nNow?"), ("assistant", " h# iy\n")),
    ]
    done = convert(tool, home, write(home / "my set.json", said, as_list))
    assert done.returncode == 0, done.stderr
    found = list(JsonlFile(home / "out.jsonl"))
    assert [one.key for one in found] == ["my_set-0000001", "b-2", "my_set-0000003"]
    assert [one.prompt for one in found] == [
        Prompt(before="", after="请你做语音评测"),
        Prompt(before="", after="say it"),
        Prompt("Be exact.", "Listen: ", "\nNow?"),
    ]
    assert [one.text for one in found] == ["sil sh iy", "語 ə", "h# iy"]
    assert {one.clip for one in found} == {Clip(str(wav))}
    assert [one.speech_length for one in found] == [98] * 3  # (1000 - 25) // 10 + 1
    assert [one.text_length for one in found] == [9, 6, 5]  # bytes, with this tokenizer


def test_the_row_of_the_documentation_that_people_have(tool, home):
    """Word for word the row that the format is known by, but for its path."""
    text = (
        '{ "conversations": [ { "from": "user", "value": "<audio>/abs/path/sa1.wav</audio>请你做语音评测" }, '
        '{ "from": "assistant", "value": "sil sh iy hh ae" } ] }'
    )
    (home / "raw.jsonl").write_text(text.replace("/abs/path", str(home)), encoding="utf-8")
    assert convert(tool, home, home / "raw.jsonl").returncode == 0
    user, assistant = read(home / "out.jsonl")[0]["messages"][1:]
    assert user["content"] == f"<|startofspeech|>!{home}/sa1.wav<|endofspeech|>请你做语音评测"
    assert assistant["content"] == "sil sh iy hh ae"


@pytest.mark.parametrize("as_list", [True, False])
def test_what_is_wrong_with_a_row_is_said_with_its_place(tool, home, as_list):
    wav = str(home / "sa1.wav")
    bad = {
        "no path in it": row(" "),
        "found 0 of them": turns(("user", "what is said?"), ("assistant", "a")),
        "found 2 of them": turns(("user", f"<audio>{wav}</audio>" * 2), ("assistant", "a")),
        "found user (str); mend": turns(USER),
        "found assistant (str), user (str)": turns(("assistant", "a"), USER),
        "found user (str), assistant (NoneType)": turns(USER, ("assistant", None)),
        "found user (str), gpt (str)": turns(USER, ("gpt", "a")),
        "found nothing": {"conversations": []},
        "KeyError('conversations')": {"messages": []},
        "TypeError": [1],
        "the assistant's turn is empty": row(wav, " "),
        "the id 'two words' is not one word": row(wav, id="two words"),
        "nowhere.wav: no such file; correct the path": row("/nowhere.wav"),
        "the id stands at": row(wav, id="good"),
    }
    path = write(home / "x.json", [row(wav, id="good"), *bad.values()], as_list)
    done = convert(tool, home, path)
    assert done.returncode == 1 and f"{len(bad)} bad row(s)" in done.stderr
    assert not (home / "out.jsonl").exists()
    done = convert(tool, home, path, f"++max_bad={len(bad)}")
    assert done.returncode == 0, done.stderr
    assert [one["key"] for one in read(home / "out.jsonl")] == ["good"]
    listed = [line.split("\t") for line in (home / "out.jsonl.bad").read_text(encoding="utf-8").splitlines()]
    reasons = {where: reason for _, where, reason in listed}
    for number, part in enumerate(bad, 2):
        assert part in reasons[f"{path}, row {number}" if as_list else f"{path}:{number}"]


def test_lines_that_are_not_json_and_lists_that_are_not(tool, home):
    path = home / "x.jsonl"
    path.write_text(json.dumps(row(home / "sa1.wav")) + '\n\n{"conversations": [\n', encoding="utf-8")
    done = convert(tool, home, path)
    assert done.returncode == 1 and f"x-0000003 ({path}:3): not JSON" in done.stderr
    path.write_text('[{"conversations": [}', encoding="utf-8")
    done = convert(tool, home, path)
    assert done.returncode == 1 and f"error: {path}: not JSON" in done.stderr and "Traceback" not in done.stderr
    done = convert(tool, home, home / "nowhere.json")
    assert done.returncode == 1 and "nowhere.json: no such file" in done.stderr


def test_a_byte_order_mark_before_a_list_or_a_line(tool, home):
    for as_list in (True, False):
        path = write(home / "x.json", [row(home / "sa1.wav")], as_list)
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert convert(tool, home, path).returncode == 0
        assert len(read(home / "out.jsonl")) == 1


def test_relative_paths_count_from_here_then_from_the_rows(home, monkeypatch):
    (home / "rows" / "clips").mkdir(parents=True)
    for path in ("rows/clips/beside.wav", "rows/both.wav", "both.wav", "rows/a.ark"):
        (home / path).touch()
    monkeypatch.chdir(home)
    names = ["clips/beside.wav", "both.wav", "neither.wav", "a.ark:17", "https://host/both.wav", "cat both.wav |"]
    index = conversations.join(str(write(home / "rows" / "x.jsonl", [row(name) for name in names])))
    beside = f"{home}/rows"
    assert [one.source for one in index] == [
        f"{beside}/clips/beside.wav",
        "both.wav",
        "neither.wav",
        f"{beside}/a.ark:17",
        *names[4:],
    ]


@pytest.mark.parametrize("word", ["++prompt=x", "++language=en", "++itn=false", "++hotwords_file=x"])
def test_a_prompt_for_rows_that_bring_theirs_is_refused(tool, home, word):
    done = convert(tool, home, write(home / "x.json", [row(home / "sa1.wav")]), word)
    assert done.returncode == 1 and "++conversations bring their prompts" in done.stderr


def test_tables_and_conversations_at_once_are_refused(tool, home):
    done = convert(tool, home, home / "x.json", "++scp_file=a", "++transcript_file=b")
    assert done.returncode == 1 and "or ++conversations" in done.stderr


def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(home):
    """One worker reads pipes that note each run, so that work done twice can be counted."""
    rows = [row(f"echo {i} >> {home}/runs; cat {home}/sa1.wav |", f"words {i}", f"ask {i}") for i in range(400)]
    path = write(home / "x.json", rows, as_list=True)
    words = [sys.executable, str(ROOT / "tools" / "scp2jsonl.py"), f"++conversations={path}", f"++tokenizer={home}"]
    words += [f"++jsonl_file={home}/out.jsonl", "++allow_pipes=true", "++max_workers=1"]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL, start_new_session=True)
    end = time.monotonic() + 60
    part = home / "out.jsonl.part"
    while not part.exists() or part.read_bytes().count(b"\n") < 100:
        assert time.monotonic() < end
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "of 400 utterances are done" in done.stderr
    found = list(JsonlFile(home / "out.jsonl"))
    assert [(one.text, one.prompt.after) for one in found] == [(f"words {i}", f"ask {i}") for i in range(400)]
    assert len((home / "runs").read_text().splitlines()) < 400 + 140  # a block of 128, not all from the start


@pytest.mark.parametrize(
    "text, prompt",
    [
        ("语音转写：", Prompt(before="语音转写：")),
        ("<audio>请你做语音评测", Prompt(before="", after="请你做语音评测")),
        ("Hear <audio> and say it.", Prompt(before="Hear ", after=" and say it.")),
    ],
)
def test_a_prompt_of_ones_own(tool, home, text, prompt):
    assert own_prompt(text) == prompt
    write_table(home / "wav.scp", {"u1": str(home / "sa1.wav")})
    write_table(home / "text-phone", {"u1": "sil sh iy"})
    words = [f"++scp_file={home}/wav.scp", f"++transcript_file={home}/text-phone", f"++prompt={text}"]
    done = tool("scp2jsonl", *words, f"++tokenizer={home}", f"++jsonl_file={home}/out.jsonl")
    assert done.returncode == 0, done.stderr
    sample = JsonlFile(home / "out.jsonl")[0]
    assert (sample.prompt, sample.text) == (prompt, "sil sh iy")


@pytest.mark.parametrize("text", ["<audio>a<audio>", "<audio>", " "])
def test_a_prompt_about_no_or_two_audios_is_refused(text):
    with pytest.raises(UserError, match="does not ask about one audio"):
        own_prompt(text)
