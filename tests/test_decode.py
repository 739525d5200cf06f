"""Decoding a set: the same text in batches, rows in input order, nothing lost, resumable."""

import json
import re

import pytest
import soundfile
from tiny import make_corpus, make_model

from speechllm import checkpoint
from speechllm.config import DecodeOptions
from speechllm.decode import batches, decode_set
from speechllm.errors import UserError
from speechllm.formats.jsonl import JsonlFile

COUNT = 23


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    return checkpoint.open_model(str(make_model(tmp_path_factory.mktemp("model"))))


@pytest.fixture
def jsonl(tmp_path):
    return make_corpus(tmp_path / "corpus", COUNT)


def decode(opened, jsonl, output, batch_size=100000, **other):
    """The rows that were written."""
    samples = JsonlFile(jsonl)
    options = DecodeOptions(batch_size=batch_size, max_new_tokens=8, num_workers=0, **other)
    decode_set(opened, samples, samples.speech_lengths, options, str(output))
    return [json.loads(line) for line in output.with_suffix(".jsonl").read_text().splitlines()]


def test_batches_are_longest_first_within_the_budget():
    assert batches([30, 10, 20, 90], 60) == [[3], [0], [1, 2]]


def test_batched_equals_one_by_one_in_input_order(opened, jsonl, tmp_path):
    decode(opened, jsonl, tmp_path / "all" / "hyp.txt")
    decode(opened, jsonl, tmp_path / "single" / "hyp.txt", batch_size=1)
    text = (tmp_path / "all" / "hyp.txt").read_text()
    assert text == (tmp_path / "single" / "hyp.txt").read_text()
    assert [line.split("\t")[0] for line in text.splitlines()] == [f"utt{i:03d}" for i in range(COUNT)]
    told = json.loads((tmp_path / "all" / "decode.json").read_text())
    assert told["utterances"] == COUNT and told["errors"] == 0 and told["rtf"] > 0 and told["truncated"] > 0
    heard = sum(soundfile.info(path).duration for path in (tmp_path / "corpus").glob("*.wav"))
    assert told["audio_seconds"] == pytest.approx(heard, abs=0.025 * COUNT)
    assert not list((tmp_path / "all").glob("*.part"))


def test_a_bad_file_is_named_and_keeps_its_place(opened, jsonl, tmp_path):
    (tmp_path / "corpus" / "utt004.wav").unlink()
    rows = decode(opened, jsonl, tmp_path / "hyp.txt")
    assert "utt004.wav: no such file" in rows[4]["error"] and rows[4]["text"] == ""
    assert [row["key"] for row in rows if "error" in row] == ["utt004"] and len(rows) == COUNT
    assert (tmp_path / "hyp.txt").read_text().splitlines()[4] == "utt004\t"


def test_a_killed_decoding_goes_on(opened, jsonl, tmp_path, monkeypatch):
    whole = decode(opened, jsonl, tmp_path / "whole.txt", batch_size=300)
    calls, predict = [], opened.task.predict

    def dies_at_the_third(*words):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return predict(*words)

    monkeypatch.setattr(opened.task, "predict", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        decode(opened, jsonl, tmp_path / "hyp.txt", batch_size=300)
    part = tmp_path / "hyp.part"
    assert not (tmp_path / "hyp.txt").exists()
    done = len(part.read_text().splitlines()) - 1
    part.write_text(part.read_text() + '[7, {"key": "utt0')  # a line cut by the kill
    seen = []
    monkeypatch.setattr(
        opened.task, "predict", lambda *words: seen.append(len(words[2]["input_ids"])) or predict(*words)
    )
    assert decode(opened, jsonl, tmp_path / "hyp.txt", batch_size=300) == whole
    assert 0 < done < COUNT and sum(seen) == COUNT - done and not part.exists()


def test_a_part_made_otherwise_is_not_gone_on_from(opened, jsonl, tmp_path):
    whole = decode(opened, jsonl, tmp_path / "whole.txt")
    head = {"data": "other", "model": "other", "max_new_tokens": 8}
    (tmp_path / "hyp.part").write_text(json.dumps(head) + '\n[0, {"key": "utt000", "text": "wrong"}]\n' * 99)
    assert decode(opened, jsonl, tmp_path / "hyp.txt") == whole


def test_killed_before_the_first_batch_and_again_after_it(opened, jsonl, tmp_path, monkeypatch):
    whole, predict = decode(opened, jsonl, tmp_path / "whole.txt", batch_size=300), opened.task.predict
    for survives in (0, 1):
        left = [True] * survives

        def dies(*words, left=left):
            if not left:
                raise KeyboardInterrupt
            left.pop()
            return predict(*words)

        monkeypatch.setattr(opened.task, "predict", dies)
        with pytest.raises(KeyboardInterrupt):
            decode(opened, jsonl, tmp_path / "hyp.txt", batch_size=300)
    monkeypatch.setattr(opened.task, "predict", predict)
    assert decode(opened, jsonl, tmp_path / "hyp.txt", batch_size=300) == whole


def test_workers_hand_over_a_batch_and_not_its_rows_again(opened, jsonl, tmp_path, monkeypatch):
    """Each tensor costs a file handle and a round trip between the processes, so many rows would run out of handles."""
    from torch.utils import data

    passed = []

    class Loader(data.DataLoader):
        def __iter__(self):
            for found in super().__iter__():
                passed.append(found)
                yield found

    monkeypatch.setattr(data, "DataLoader", Loader)
    decode(opened, jsonl, tmp_path / "hyp.txt")
    assert passed and all(faults == [None] * COUNT and len(batch) <= 5 for faults, batch in passed)


def test_the_command_line(opened, jsonl, tmp_path, tool):
    """From wav.scp, with one bad file: named, the rest decoded, a non-zero exit below max_bad."""
    scp = tmp_path / "corpus" / "wav.scp"
    (tmp_path / "corpus" / "utt001.wav").write_bytes(b"")
    words = [f"++model_dir={opened.family.folder}", f"++scp_file={scp}", f"++output_file={tmp_path}/d/hyp.txt"]
    words += ["++max_new_tokens=4", "++num_workers=1"]
    done = tool("decode", *words)
    assert done.returncode == 1, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: 1 bad row(s), 0 allowed; the first: utt001") and f"{scp}:2" in last
    assert len((tmp_path / "d" / "hyp.txt").read_text().splitlines()) == COUNT
    assert (tmp_path / "d" / "hyp.txt.bad").read_text().startswith("utt001\t")
    assert tool("decode", *words, "++max_bad=1").returncode == 0
    assert re.search(r"RTF 0\.\d+", done.stderr)


def test_missing_options_are_named(tool):
    done = tool("decode", "++model_dir=x", "++output_file=y")
    assert done.returncode == 1 and "++scp_file and ++jsonl_file" in done.stderr
    with pytest.raises(UserError, match="no such folder"):
        checkpoint.open_model("./nowhere")
