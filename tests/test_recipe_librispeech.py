"""egs/librispeech/asr on a miniature of LibriSpeech, built from one of its recordings."""

import json
import shutil

import miniature
import pytest
from miniature import ROOT, Recipe, make_librispeech
from tiny import make_model

from speechllm import download
from speechllm.errors import UserError

SCRIPT = ROOT / "egs" / "librispeech" / "asr" / "local" / "prepare_librispeech.py"
PARTS = {"train-clean-100": 6, "train-other-500": 4, "dev-clean": 2, "test-clean": 2, "test-other": 2}


@pytest.fixture
def corpus(shared_data, tmp_path):
    """The folder above LibriSpeech, and what is said in every utterance."""
    if not miniature.flac(shared_data).is_file():
        pytest.skip(f"no {miniature.flac(shared_data)}")
    return tmp_path, make_librispeech(tmp_path, shared_data, PARTS)


@pytest.fixture
def recipe(tmp_path):
    return Recipe(tmp_path / "project", "librispeech")


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    """The prepare script, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return miniature.load(SCRIPT, "prepare_librispeech")


def test_stages_0_and_1(recipe, corpus, tmp_path):
    folder, words = corpus
    tokenizer = make_model(tmp_path / "model")
    parts = "train-other-500,train-clean-100,dev-clean,test-clean"
    done = recipe.run("--corpus", folder / "LibriSpeech", "--parts", parts, "--tokenizer", tokenizer, "--stop-stage", 1)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (recipe.home / "data/full").iterdir() if path.is_dir()} == {
        "train",
        "dev",
        "test-clean",
    }
    expected = [f"61-{70968 + index // 2}-{index:04d}" for index in range(6)]
    expected += [f"62-{70968 + index // 2}-{index:04d}" for index in range(4)]
    assert list(recipe.table("data/full/train/text")) == expected
    assert recipe.table("data/full/train/utt2spk") == {key: key[:2] for key in expected}
    assert recipe.table("data/full/train/wav.scp")[expected[-1]] == str(
        folder / "LibriSpeech/train-other-500/62/70969" / f"{expected[-1]}.flac"
    )
    rows = [json.loads(line) for line in (recipe.home / "data/full/test-clean.jsonl").read_text("utf-8").splitlines()]
    assert [row["messages"][2]["content"] for row in rows] == [words.lower()] * 2
    assert words.startswith("HE BEGAN A CONFUSED COMPLAINT") and words.isupper()
    assert rows[0]["speech_length"] == 489  # of 4.905 s: (4905 - 25) // 10 + 1
    assert "dev-clean: 2 utterances; the whole corpus has 2703" in done.stderr


def test_stages_0_to_4_with_lora(recipe, corpus, tmp_path):
    model = make_model(tmp_path / "model")
    words = ["--corpus", corpus[0], "--parts", "train-clean-100,dev-clean,test-clean", "--tokenizer", model]
    words += ["--run", "lora", "--config", "conf/lora.yaml", "--nproc", 1]
    short = ["++train_conf.max_epoch=1", "++max_new_tokens=8", "++dataset_conf.num_workers=0"]
    done = recipe.run(*words, f"++model={model}", *short)
    assert done.returncode == 0, done.stdout + done.stderr
    score = json.loads((recipe.home / "exp/lora/decode_test-clean/score.json").read_text())
    assert score["metric"] == "wer" and score["counts"]["utterances"] == 2
    assert score["counts"]["ref_tokens"] == 2 * 17
    assert "| lora | test-clean | WER |" in (recipe.home / "RESULTS.md").read_text()


def no_transcript(folder):
    (folder / "dev-clean/63/70968/63-70968.trans.txt").unlink()


def one_line_less(folder):
    path = folder / "dev-clean/63/70968/63-70968.trans.txt"
    path.write_text(path.read_text().splitlines()[0] + "\n")


def no_words(folder):
    path = folder / "dev-clean/63/70968/63-70968.trans.txt"
    path.write_text(path.read_text().splitlines()[0] + "\n63-70968-0001\n")


def no_audio(folder):
    (folder / "dev-clean/63/70968/63-70968-0001.flac").unlink()


@pytest.mark.parametrize(
    "damage, left_out, reason",
    [
        (no_transcript, ["63-70968-0000", "63-70968-0001"], "audio without transcript"),
        (one_line_less, ["63-70968-0001"], "audio without transcript"),
        (no_words, ["63-70968-0001"], "nothing follows the id"),
        (no_audio, ["63-70968-0001"], "transcript without audio"),
    ],
)
def test_what_is_left_out_is_a_fault_unless_allowed(recipe, corpus, damage, left_out, reason):
    damage(corpus[0] / "LibriSpeech")
    words = ["--corpus", corpus[0], "--stop-stage", 0]
    done = recipe.run(*words)
    assert done.returncode == 1
    assert f"{len(left_out)} bad row(s), 0 allowed; the first: {left_out[0]}" in done.stderr and reason in done.stderr
    assert not (recipe.home / "data/full/dev").exists()
    listed = [line.split("\t")[0] for line in (recipe.home / "data/full/corpus.bad").read_text().splitlines()]
    assert listed == left_out
    allowed = recipe.run(*words, "--max-bad", len(left_out))
    if damage is no_transcript:
        assert "dev: no utterance with audio and transcript" in allowed.stderr
    else:
        assert allowed.returncode == 0
        assert list(recipe.table("data/full/dev/text")) == ["63-70968-0000"]


@pytest.mark.parametrize(
    "parts, message",
    [
        (["train-clean-1000"], "train-clean-1000: no part of LibriSpeech; the parts are train-clean-100, "),
        (["train-clean-100", "test-clean"], "no dev part among train-clean-100, test-clean"),
        (["train-clean-360", "dev-clean", "test-clean"], "neither train-clean-360/ nor LibriSpeech/train-clean-360/"),
    ],
)
def test_parts_that_cannot_be_had_are_named(prepare, corpus, parts, message):
    with pytest.raises(UserError, match=message):
        prepare.main(prepare.Options(corpus=str(corpus[0]), parts=parts))


def test_each_part_is_downloaded_checked_and_taken_up_where_it_broke_off(prepare, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    files = {}
    for part in PARTS:
        content = miniature.packed(corpus[0], f"LibriSpeech/{part}")
        files[f"/resources/12/{part}.tar.gz"] = content
        monkeypatch.setitem(prepare.PARTS, part, prepare.Part(miniature.md5(content), PARTS[part]))
    shutil.rmtree(corpus[0] / "LibriSpeech")
    site = miniature.serve(files)
    try:
        options = prepare.Options(mirror=site.url)
        site.cuts = [1 << 16]
        with pytest.raises(UserError, match=r"train-clean-100\.tar\.gz: broken off .*goes on where it stopped"):
            prepare.main(options)
        prepare.main(options)
        prepare.main(options)
        damaged = bytearray(files["/resources/12/dev-clean.tar.gz"])
        damaged[1000] ^= 1
        files["/resources/12/dev-clean.tar.gz"] = bytes(damaged)
        shutil.rmtree(tmp_path / "downloads" / "dev-clean")
        (tmp_path / "downloads" / "dev-clean.tar.gz").unlink()
        with pytest.raises(UserError, match=r"dev-clean\.tar\.gz: md5 .* expected"):
            prepare.main(options)
    finally:
        site.shutdown()
        site.server_close()
    names = [(path.split("/")[-1].removesuffix(".tar.gz"), first) for path, first in site.requests]
    wanted = [(part, 0) for part in ("dev-clean", "test-clean", "test-other")]
    assert names == [("train-clean-100", 0), ("train-clean-100", 1 << 16), *wanted, ("dev-clean", 0)]
    texts = (tmp_path / "data/train/text").read_text().splitlines()
    assert len(texts) == 6 and all(
        text.endswith(
            " he began a confused complaint against the wizard who had vanished behind the curtain on the left"
        )
        for text in texts
    )
    assert not (tmp_path / "downloads/dev-clean.tar.gz").exists()
