"""scp2jsonl on much data: any order of the tables, flat memory, kills at any moment, hotwords."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from byte_tokenizer import make_tokenizer

from speechllm.formats import contract
from speechllm.formats.kaldi import write_table

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def corpus(tmp_path):
    """``corpus(rows)`` writes tables that point at one short wav; ``source(number, path)`` gives another."""
    soundfile.write(tmp_path / "a.wav", np.full(8000, 0.1), 16000)

    def make(rows, source=lambda number, path: path):
        write_table(tmp_path / "wav.scp", {f"u{i:06d}": str(source(i, tmp_path / "a.wav")) for i in range(rows)})
        write_table(tmp_path / "text", {f"u{i:06d}": f"words of {i}" for i in range(rows)})
        return tmp_path

    return make


@pytest.fixture
def command(tmp_path, tokenizer):
    def words(*more):
        tables = [f"++scp_file={tmp_path}/wav.scp", f"++transcript_file={tmp_path}/text"]
        tool = [sys.executable, str(ROOT / "tools" / "scp2jsonl.py"), f"++tokenizer={tokenizer}"]
        return [*tool, *tables, f"++jsonl_file={tmp_path}/out.jsonl", *more]

    return words


def run(words):
    return subprocess.run(words, capture_output=True, text=True, timeout=300)


def start(words):
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def lines_of(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for(what, seconds=60):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.01)


# Any order.


def expected(scp, text, segments=None):
    """The contract in plain words, for lists of (id, value): the joined rows, and the ids of the faults."""

    def first(table):
        good = {}
        return good, [key for key, value in table if good.setdefault(key, value) is not value]

    (audio, *faults), (words, more) = first(scp), first(text)
    faults = [*faults[0], *more]
    if segments is not None:
        cuts, more = first(segments)
        whole, audio = audio, {key: whole for key, whole in cuts.items() if whole in audio}
        faults += [*more, *(cuts.keys() - audio.keys()), *(whole.keys() - set(cuts.values()))]
    known = set(faults)
    faults += [key for key in audio.keys() ^ words.keys() if key not in known]
    return [(key, words[key]) for key in audio if key in words], sorted(faults)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("cut", [False, True])
def test_tables_in_any_order_with_any_lack_join_as_dictionaries_do(tmp_path, seed, cut):
    draw = random.Random(seed)

    def table(name, keys, value):
        keys = draw.choices(keys, k=draw.randint(1, 12)) if seed % 4 else list(keys)
        if seed % 2:
            keys.sort()
        rows = [(key, value(key, i)) for i, key in enumerate(keys)]
        (tmp_path / name).write_text("".join(f"{key} {value}\n" for key, value in rows), encoding="utf-8")
        return rows

    ids = ["a", "b", "B", "c-1", "语", "é", "z9"]
    recordings = [f"r{i}" for i in range(4)] if cut else ids
    scp = table("wav.scp", recordings, lambda key, i: f"/audio/{key}.{i}.wav")
    text = table("text", ids, lambda key, i: f"{key} says {i}")
    segments = table("segments", ids, lambda key, i: f"{draw.choice(recordings)} {i} {i + 1}") if cut else None
    found = []
    paths = [str(tmp_path / name) for name in ("wav.scp", "text")] + ([str(tmp_path / "segments")] if cut else [])
    joined = contract.join(*paths, on_fault=lambda *fault: found.append(fault))
    if cut:
        segments = [(key, value.split()[0]) for key, value in segments]
    rows, faults = expected(scp, text, segments)
    assert [(one.key, one.text) for one in joined] == rows and len(joined) == len(rows)
    assert sorted(key for key, _, _ in found) == faults
    for one in joined:
        path, _, number = one.where.rpartition(":")
        assert Path(path).read_text(encoding="utf-8").splitlines()[int(number) - 1].startswith(f"{one.key} ")


def test_memory_does_not_grow_with_the_tables(corpus, command):
    """Peak memory of the whole command at 2,000 and at 40,000 rows, in order and out of it."""
    code = "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:]).returncode\n"
    code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) if not done else sys.exit(done)"
    peaks = []
    for rows in (2000, 40000):
        folder = corpus(rows)
        for _ in range(2):
            done = run([sys.executable, "-c", code, *command("++max_workers=2")])
            assert done.returncode == 0, done.stderr
            peaks.append(int(done.stdout) / 1024)
            table = (folder / "text").read_text().splitlines(keepends=True)
            random.Random(0).shuffle(table)
            (folder / "text").write_text("".join(table))
        assert lines_of(folder / "out.jsonl") == rows
    assert peaks[2] - peaks[0] < 12 and peaks[3] - peaks[1] < 12, peaks  # MiB; read whole, these tables take 34


# Kills. One worker works row by row through pipes that note each run, so that work done twice can be counted.


def noting(number, path):
    return f"echo {number} >> {path.parent}/runs; cat {path if number not in (3, 390) else '/no/where'} |"


PIPES = ("++allow_pipes=true", "++max_workers=1", "++max_bad=2")


def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(corpus, command):
    folder = corpus(400, noting)
    assert run(command(*PIPES)).returncode == 0
    whole = {name: (folder / name).read_bytes() for name in ("out.jsonl", "out.jsonl.bad")}
    assert len(whole["out.jsonl.bad"].splitlines()) == 2 and whole["out.jsonl"].count(b"\n") == 398
    for name in ("out.jsonl", "out.jsonl.bad", "runs"):
        (folder / name).unlink()

    for done in (100, 300):
        process = start(command(*PIPES))
        wait_for(lambda done=done: lines_of(folder / "out.jsonl.part") > done)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (folder / "out.jsonl").exists()
    with open(folder / "out.jsonl.part", "ab") as part:
        part.write(b'0.500000 {"messages": [{"ro')  # as if the kill had come within a row
    again = run(command(*PIPES))
    assert again.returncode == 0 and "of 400 utterances are done" in again.stderr
    assert {name: (folder / name).read_bytes() for name in whole} == whole
    assert lines_of(folder / "runs") < 400 + 2 * 140  # a block of 128 per kill, not all from the start
    assert sorted(path.name for path in folder.iterdir() if "out" in path.name) == ["out.jsonl", "out.jsonl.bad"]


def test_kills_at_random_moments_leave_no_process_and_the_same_bytes(corpus, command):
    folder = corpus(6000)
    started = time.monotonic()
    assert run(command("++max_workers=2")).returncode == 0
    took = time.monotonic() - started
    whole = (folder / "out.jsonl").read_bytes()
    (folder / "out.jsonl").unlink()
    for seed in range(5):
        process = start(command("++max_workers=2"))
        time.sleep(took * random.Random(seed).uniform(0.2, 0.9))
        process.kill()  # the parent alone: its workers have to notice
        process.wait()
        wait_for(lambda: not processes_with(f"{folder}/out.jsonl"))
    assert run(command("++max_workers=2")).returncode == 0
    assert (folder / "out.jsonl").read_bytes() == whole
    assert not (folder / "out.jsonl.part").exists()


def processes_with(word):
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [path.parent.name] if word.encode() in path.read_bytes() else []
        except OSError:  # it has ended
            continue
    return found


@pytest.mark.parametrize("change", ["text", "option"])
def test_what_was_done_of_other_data_or_with_other_options_is_done_anew(corpus, command, change):
    folder = corpus(400, noting)
    process = start(command(*PIPES))
    wait_for(lambda: lines_of(folder / "out.jsonl.part") > 100)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    more = PIPES
    if change == "text":
        (folder / "text").write_text((folder / "text").read_text().replace("words of 1\n", "word of 1\n"))
    else:
        more = (*PIPES, "++language=en")
    done = run(command(*more))
    assert done.returncode == 0 and "are done" not in done.stderr
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 398
    assert rows[1]["messages"][2]["content"] == ("word of 1" if change == "text" else "words of 1")
    assert rows[1]["messages"][1]["content"].startswith("语音转写：" if change == "text" else "语音转写成英文：")


def test_after_too_many_faults_mended_audio_is_looked_at_anew(corpus, command):
    folder = corpus(200, lambda number, path: path if number else path.parent / "late.wav")
    assert run(command()).returncode == 1
    assert not (folder / "out.jsonl.part").exists() and not (folder / "out.jsonl").exists()
    (folder / "late.wav").write_bytes((folder / "a.wav").read_bytes())
    assert run(command()).returncode == 0
    assert lines_of(folder / "out.jsonl") == 200 and not (folder / "out.jsonl.bad").exists()


def test_two_runs_do_not_write_the_same_file(corpus, command):
    folder = corpus(400, noting)
    first = start(command(*PIPES))
    wait_for(lambda: (folder / "out.jsonl.part").exists() and lines_of(folder / "runs"))
    second = run(command(*PIPES))
    assert second.returncode == 1 and "out.jsonl.part: another run writes it now" in second.stderr
    assert first.wait() == 0
    assert lines_of(folder / "out.jsonl") == 398


# Hotwords.


def test_hotwords_stand_in_the_prompts_of_their_utterances(corpus, command):
    folder = corpus(3)
    (folder / "hotwords").write_text("u000002 开放时间，Fun ASR\nu000000 one, two,\n", encoding="utf-8")
    assert run(command(f"++hotwords_file={folder}/hotwords")).returncode == 0
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    before = [row["messages"][1]["content"].partition("<|startofspeech|>")[0] for row in rows]
    assert "热词列表：[one, two]\n" in before[0] and before[0].endswith("语音转写：")
    assert before[1] == "语音转写："
    assert "热词列表：[开放时间, Fun ASR]\n" in before[2]


def test_hotwords_of_nobody_are_a_fault(corpus, command):
    folder = corpus(3)
    (folder / "hotwords").write_text("u000001 x\nu9 y\nu000002 ,，\nu000001 z\n", encoding="utf-8")
    done = run(command(f"++hotwords_file={folder}/hotwords"))
    assert done.returncode == 1
    bad = [line.split("\t") for line in (folder / "out.jsonl.bad").read_text(encoding="utf-8").splitlines()]
    assert [(key, where) for key, where, _ in bad] == [
        ("u000002", f"{folder}/hotwords:3"),
        ("u000001", f"{folder}/hotwords:4"),
        ("u9", f"{folder}/hotwords:2"),
    ]
    assert "word,word" in bad[0][2] and "on line 1 already" in bad[1][2]
    assert "hotwords of an utterance without audio and text" in bad[2][2]


def test_tables_or_shards_are_needed(command, tmp_path, tool):
    done = tool("scp2jsonl", f"++jsonl_file={tmp_path}/x.jsonl")
    assert done.returncode == 1 and "++scp_file and ++transcript_file are needed" in done.stderr
