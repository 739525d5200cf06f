"""Aligning a set with a model: rows to train on, other formats, what is sure enough alone, going on after a kill."""

import json
import shutil

import pytest
import srt
from aligner import make_aligner
from tiny import make_corpus, make_model

from speechllm import checkpoint, pseudo_labels
from speechllm.config import DecodeOptions
from speechllm.errors import Rejects, UserError
from speechllm.formats.jsonl import JsonlFile
from speechllm.formats.times import ctm, textgrid

COUNT = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_aligner(tmp_path_factory.mktemp("aligner"))


@pytest.fixture(scope="module")
def opened(model):
    return checkpoint.open_model(str(model))


@pytest.fixture
def corpus(tmp_path):
    return make_corpus(tmp_path / "corpus", COUNT).parent


def align(opened, samples, folder, **options):
    how = DecodeOptions(num_workers=0, **options)
    return pseudo_labels.align(opened, samples, how, str(folder), "cpu")


def tables(corpus, language="", on_fault=None):
    paths = (str(corpus / name) for name in ("wav.scp", "text"))
    return pseudo_labels.Spoken(pseudo_labels.from_tables(*paths, "", False, on_fault), language)


def write(samples, made, output, formats=("jsonl",), min_confidence=0.0, max_bad=0):
    pseudo_labels.write(samples, made, str(output), formats, min_confidence, Rejects(f"{output}.bad", max_bad))
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_the_command_line_writes_every_format(model, corpus, tool, tmp_path):
    (corpus / "utt003.wav").write_bytes(b"")
    words = ["++scp_file=corpus/wav.scp", "++transcript_file=corpus/text", "++output_file=out/lab.jsonl"]
    words += [f"++model_dir={model}", "++formats=jsonl,textgrid,ctm,srt", "++language=English"]
    done = tool("align", *words)
    assert done.returncode == 1 and "1 bad row(s), 0 allowed; the first: utt003" in done.stderr
    assert not (tmp_path / "out" / "lab.jsonl").exists() and not (tmp_path / "out" / "lab_srt").exists()
    done = tool("align", *words, "++max_bad=1")
    assert done.returncode == 0, done.stderr
    assert "aligned already" in done.stderr and "kept 11 of 11 aligned utterances (100.0%)" in done.stderr
    texts = dict(line.split(" ", 1) for line in (corpus / "text").read_text().splitlines())
    rows = [json.loads(line) for line in (tmp_path / "out" / "lab.jsonl").read_text().splitlines()]
    assert [row["key"] for row in rows] == sorted(texts.keys() - {"utt003"})
    assert (tmp_path / "out" / "lab.jsonl.bad").read_text().startswith("utt003\t")
    places = ctm.places(str(tmp_path / "out" / "lab.ctm"))
    for row, sample in zip(rows, JsonlFile(str(tmp_path / "out" / "lab.jsonl")), strict=True):
        assert row["text"] == texts[row["key"]] and row["language"] == "English"
        assert list(map(list, sample.spans)) == row["timestamps"]
        assert len(row["confidences"]) == len(row["timestamps"]) == len(row["text"].split())
        heard = ctm.read(str(tmp_path / "out" / "lab.ctm"), places[row["key"]])
        grid = textgrid.read(str(tmp_path / "out" / "lab_textgrid" / f"{row['key']}.TextGrid"))
        cues = list(srt.parse((tmp_path / "out" / "lab_srt" / f"{row['key']}.srt").read_text()))
        assert [word.text for word in heard] == [cue.content for cue in cues] == row["text"].split()
        assert heard == grid and [[word.start, word.end] for word in grid] == row["timestamps"]
        assert [cue.end.total_seconds() for cue in cues] == pytest.approx([e for _, e in row["timestamps"]], abs=6e-4)


def test_labels_of_low_confidence_are_left_out_and_listed(opened, corpus, tmp_path, caplog):
    caplog.set_level("INFO")
    samples = tables(corpus)
    made = align(opened, samples, tmp_path / "a")
    rows = write(samples, made, tmp_path / "all.jsonl")
    means = {row["key"]: sum(row["confidences"]) / len(row["confidences"]) for row in rows}
    limit = sum(means.values()) / COUNT
    kept = write(samples, made, tmp_path / "some.jsonl", min_confidence=limit)
    assert kept == [row for row in rows if means[row["key"]] >= limit] and 0 < len(kept) < COUNT
    assert f"kept {len(kept)} of {COUNT} aligned utterances ({len(kept) / COUNT:.1%})" in caplog.text
    low = dict(line.split("\t") for line in (tmp_path / "some.jsonl.low").read_text().splitlines())
    assert {key: float(value) for key, value in low.items()} == pytest.approx(
        {key: mean for key, mean in means.items() if mean < limit}, abs=1e-4
    )
    with pytest.raises(UserError, match=r"no utterance is left; .*\.low"):
        write(samples, made, tmp_path / "none.jsonl", min_confidence=1.1)
    assert not (tmp_path / "none.jsonl").exists()


def test_a_killed_alignment_goes_on_and_a_complete_one_is_kept(opened, corpus, tmp_path, monkeypatch):
    samples = tables(corpus)
    whole = open(align(opened, samples, tmp_path / "whole")).read()  # noqa: SIM115
    seen, predict = [], opened.task.predict

    def dies_at_the_third(*words):
        seen.append(len(words[2]["features"]))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return predict(*words)

    monkeypatch.setattr(opened.task, "predict", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        align(opened, samples, tmp_path / "a", batch_size=200)
    done = sum(seen[:2])
    made = align(opened, samples, tmp_path / "a", batch_size=200)
    assert open(made).read() == whole and sum(seen[3:]) == COUNT - done  # noqa: SIM115
    seen.clear()
    align(opened, samples, tmp_path / "a")
    assert not seen
    align(opened, samples, tmp_path / "a", boundaries="argmax")
    assert sum(seen) == COUNT


def test_other_words_are_aligned_anew(opened, corpus, tmp_path):
    before = align(opened, tables(corpus), tmp_path / "a")
    lines = (corpus / "text").read_text().splitlines()
    (corpus / "text").write_text("\n".join(["utt000 six six", *lines[1:]]) + "\n")
    with open(align(opened, tables(corpus), tmp_path / "a")) as file:
        assert before and json.loads(file.readline())["words"] == ["six", "six"]


def test_rows_of_a_jsonl_have_their_own_language(opened, corpus, tmp_path):
    rows = write(tables(corpus, "English"), align(opened, tables(corpus), tmp_path / "a"), tmp_path / "a.jsonl")
    del rows[0]["language"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = pseudo_labels.Spoken(JsonlFile(str(tmp_path / "a.jsonl")), "French")
    assert [sample.language for sample in samples] == ["French"] + ["English"] * (COUNT - 1)
    assert list(samples.lengths) == [row["speech_length"] for row in rows]


def test_text_and_audio_without_the_other_are_told(corpus):
    lines = (corpus / "text").read_text().splitlines()
    (corpus / "text").write_text("\n".join([*lines[1:], "more words"]) + "\n")
    faults = []
    samples = tables(corpus, on_fault=lambda *fault: faults.append(fault))
    assert len(samples) == COUNT - 1 and [fault[0] for fault in faults] == ["utt000", "more"]
    assert faults[0][1].endswith("wav.scp:1") and faults[1][1].endswith(f"text:{COUNT}")


def test_a_model_that_does_not_align_is_refused(corpus, tmp_path):
    other = checkpoint.open_model(str(make_model(tmp_path / "asr")))
    with pytest.raises(UserError, match="a model of the task sft, which gives no times"):
        align(other, tables(corpus), tmp_path / "a")


@pytest.mark.parametrize("said", ["jsonl,ctm", "[jsonl, ctm]", ["jsonl", "ctm", "ctm"]])
def test_formats(said):
    assert pseudo_labels.formats_of(said, True) == ["jsonl", "ctm"]


@pytest.mark.parametrize(("said", "message"), [("cmt", "unknown format 'cmt'"), ("textgrid", "no word of zero length")])
def test_formats_that_are_refused(said, message):
    with pytest.raises(UserError, match=message):
        pseudo_labels.formats_of(said, True)


def test_no_file_leaves_the_folder(tmp_path):
    keys = ["a", "spk/a", "../a", "../../etc/a", "/a", "/etc/passwd", "a//b", "a/b", "a/./b", "..", ".", "a:b", "a\\b"]
    keys += ["a%3Ab", "你好", "%", "/", "//"]
    paths = {(tmp_path / (pseudo_labels.file_name(key) + ".srt")).resolve() for key in keys}
    assert len(paths) == len(keys) and all(path.is_relative_to(tmp_path.resolve()) for path in paths)
    assert pseudo_labels.file_name("spk/你好.1") == "spk/你好.1"  # what prepare_aligner_data reads again


def test_an_earlier_folder_is_replaced_whole(opened, corpus, tmp_path):
    samples = tables(corpus)
    made = align(opened, samples, tmp_path / "a")
    write(samples, made, tmp_path / "b.jsonl", ["jsonl", "srt"])
    shutil.copy(tmp_path / "b_srt" / "utt000.srt", tmp_path / "b_srt" / "old.srt")
    write(samples, made, tmp_path / "b.jsonl", ["jsonl", "srt"])
    assert len(list((tmp_path / "b_srt").iterdir())) == COUNT and not (tmp_path / "b_srt.part").exists()
