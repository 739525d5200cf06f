"""ChatML rows as Fun-ASR's users have them, with what is said about a bad one."""

import json

import pytest

from speechllm.errors import UserError
from speechllm.formats import jsonl
from speechllm.formats.chatml import to_row
from speechllm.formats.jsonl import JsonlFile
from speechllm.formats.prompts import asr_prompt
from speechllm.sample import Clip, Prompt, Sample

# A row of the form that FunASR's documentation gives: no key, three messages, lengths.
UPSTREAM = {
    "messages": [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "语音转写：<|startofspeech|>!https://host/a b.wav<|endofspeech|>"},
        {"role": "assistant", "content": "几点了？"},
    ],
    "speech_length": 145,
    "text_length": 3,
}


def write(path, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def row(key, **change):
    return UPSTREAM | {"key": key} | change


def user(content):
    return [UPSTREAM["messages"][0], {"role": "user", "content": content}, UPSTREAM["messages"][2]]


def test_rows_of_upstream_are_read_and_written_alike(tmp_path):
    file = JsonlFile(write(tmp_path / "my set.jsonl", UPSTREAM, "", UPSTREAM))
    assert [sample.key for sample in file] == ["my_set-0000001", "my_set-0000003"]
    assert (list(file.speech_lengths), list(file.text_lengths), list(file.sizes)) == ([145] * 2, [3] * 2, [148] * 2)
    sample = file[1]
    assert sample.clip == Clip("https://host/a b.wav") and sample.prompt == Prompt() == asr_prompt()
    assert sample.text == "几点了？" and sample.where == f"{tmp_path}/my set.jsonl:3"
    written = to_row(sample)
    assert written.pop("key") == "my_set-0000003"
    assert json.dumps(written) == json.dumps(UPSTREAM)  # in the same order


@pytest.mark.parametrize(
    "clip", [Clip("/a.wav"), Clip("/a.wav", 1.5, 2.25), Clip("/a.wav", 0.5), Clip("a.ark:7", 0, 2)]
)
@pytest.mark.parametrize("text", ["words \u2028 语", "", None])
def test_a_sample_comes_back_as_it_went(tmp_path, clip, text):
    sample = Sample("u-1", clip, Prompt("system", "before ", " after"), text, 98, 2, f"{tmp_path}/x.jsonl:1")
    assert JsonlFile(write(tmp_path / "x.jsonl", to_row(sample)))[0] == sample


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ('{"messages": [', "not JSON"),
        ("[1, 2]", "no 'messages' or"),
        ("null", "no 'messages' or"),
        ({"speech_length": 1}, "no 'messages'"),
        ({key: UPSTREAM[key] for key in ("messages", "text_length")}, "no 'speech_length'"),
        (row("b", messages=user("no audio")), "0 audio marks"),
        (row("b", messages=user("<|startofspeech|>!a<|endofspeech|>" * 2)), "2 audio marks"),
        (row("b", messages=user(None)), "not a ChatML row"),
        (row("b", messages=UPSTREAM["messages"] * 2), "one system, one user"),
        (row("b", messages=[*UPSTREAM["messages"][:2], {"role": "assistant", "content": 7}]), "not text"),
        (row("b", end="soon"), "not a ChatML row"),
        (row("b", speech_length=float("inf")), "not a ChatML row"),
        (row("b", speech_length=-1), "a speech_length of -1"),
        (row("b", text_length=2**31), "a text_length of 2147483648"),
        (row("two words"), "not one word"),
        (row("a"), "utterance a stands on line 1 already"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, bad, reason):
    path = write(tmp_path / "x.jsonl", row("a"), bad, row("c"))
    with pytest.raises(UserError) as caught:
        JsonlFile(path)
    assert str(caught.value).startswith(f"{path}:2: ") and reason in str(caught.value)


def test_rows_are_found_from_both_ends(tmp_path):
    file = JsonlFile(write(tmp_path / "x.jsonl", row("a"), row("b"), row("c")))
    assert [file[i].key for i in (-1, 0, -3, 2)] == ["c", "a", "a", "c"]
    for index in (3, -4):
        with pytest.raises(IndexError):
            file[index]


def test_the_first_id_that_stands_twice_is_named(tmp_path):
    path = write(tmp_path / "x.jsonl", *(row(key) for key in "cabdabc"))
    with pytest.raises(UserError, match=r"x\.jsonl:5: utterance a stands on line 2 already"):
        JsonlFile(path)


def test_ids_of_equal_hashes_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "digest", len)
    rows = [row(key) for key in ("a", "b", "cc", "d", "ee")]
    assert len(JsonlFile(write(tmp_path / "x.jsonl", *rows))) == 5
    with pytest.raises(UserError, match=r"x\.jsonl:6: utterance b stands on line 2 already"):
        JsonlFile(write(tmp_path / "x.jsonl", *rows, row("b")))


def test_a_prompt_of_its_own_in_every_row_does_not_fill_the_memory(tmp_path):
    common = [row(f"c{i}") for i in range(3)]
    own = [row(f"o{i}", messages=user(f"{i}<|startofspeech|>!a<|endofspeech|>")) for i in range(1500)]
    file = JsonlFile(write(tmp_path / "x.jsonl", *own[:10], *common, *own[10:]))
    assert file.prompts.most_common(1) == [(Prompt(), 3)] and len(file.prompts) == 1000


# A file that lists files, as FunASR's index_ds.py takes it: any name that ends neither in .jsonl nor in .json.


def test_listed_files_are_one_sequence(tmp_path, monkeypatch):
    (tmp_path / "lists" / "more").mkdir(parents=True)
    write(tmp_path / "lists" / "a.jsonl", row("a1"), "", row("a2"))
    write(tmp_path / "lists" / "more" / "b.json", row("b1"))
    write(tmp_path / "here.jsonl", row("h1"), row("h2"))
    write(tmp_path / "lists" / "train.list", "a.jsonl", "", " more/b.json ", "here.jsonl")
    monkeypatch.chdir(tmp_path)
    file = JsonlFile("lists/train.list")
    assert [sample.key for sample in file] == ["a1", "a2", "b1", "h1", "h2"]
    where = ["lists/a.jsonl:1", "lists/a.jsonl:3", "lists/more/b.json:1", "here.jsonl:1", "here.jsonl:2"]
    assert [file[i].where for i in range(5)] == where
    assert file.prompts[Prompt()] == len(file) == len(file.sizes) == 5


def test_rows_without_ids_of_files_of_one_name_do_not_meet(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "train.jsonl", UPSTREAM)
    file = JsonlFile(write(tmp_path / "list.txt", "x/train.jsonl", "y/train.jsonl"))
    assert [sample.key for sample in file] == ["train-0000001", "train.2-0000001"]


@pytest.mark.parametrize(
    ("second", "names", "message"),
    [
        ([row("c"), row("a")], "a.jsonl b.jsonl", r"b\.jsonl:2: utterance a stands on line 1 of .*a\.jsonl already"),
        ([row("b"), "{"], "a.jsonl b.jsonl", r"b\.jsonl:2: not JSON"),
        ([], "a.jsonl b.jsonl", r"b\.jsonl: no row in the file"),
        ([], "a.jsonl c.jsonl", r"list:2: no such file: c\.jsonl; .*correct the path"),
        ([], json.dumps(UPSTREAM), r"list:1: no such file: \{\"messages\""),
        ([], "", r"list: lists no file"),
    ],
)
def test_faults_in_listed_files_are_named(tmp_path, second, names, message):
    write(tmp_path / "a.jsonl", row("a"))
    write(tmp_path / "b.jsonl", *second)
    lines = names.split() if names.startswith("a") else [names]
    with pytest.raises(UserError, match=message):
        JsonlFile(write(tmp_path / "list", *lines))


def test_bytes_that_are_not_utf8(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(json.dumps(row("a")).encode() + b'\n{"key": "\xff"}\n')
    with pytest.raises(UserError, match=r"x\.jsonl:2: not JSON"):
        JsonlFile(tmp_path / "x.jsonl")


def test_missing_and_empty_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"y\.jsonl: no such file"):
        JsonlFile(tmp_path / "y.jsonl")
    with pytest.raises(UserError, match=r"x\.jsonl: no row"):
        JsonlFile(write(tmp_path / "x.jsonl"))


# The prompts that upstream documents, word for word.


def test_prompts():
    assert asr_prompt().before == "语音转写："
    assert asr_prompt("en").before == "语音转写成英文："
    assert asr_prompt("日文").before == "语音转写成日文："
    assert asr_prompt(itn=False).before == "语音转写，不进行文本规整："
    assert asr_prompt().system == "You are a helpful assistant." and asr_prompt().after == ""
    with pytest.raises(UserError, match="unknown language klingon; give zh, en, ja"):
        asr_prompt("klingon")
