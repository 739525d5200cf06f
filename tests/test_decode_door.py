"""The two doors to decoding: decode.py, as Fun-ASR's users type it, and decode.sh --data SET."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from shell import bash
from tiny import make_corpus, make_model

from speechllm import checkpoint
from speechllm.config import DecodeOptions
from speechllm.decode import decode_set
from speechllm.formats.kaldi import samples

ROOT = Path(__file__).resolve().parents[1]
WORDS = ["++max_new_tokens=8", "++num_workers=1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"), spread=0.3)


@pytest.fixture
def corpus(tmp_path):
    """A set of 6 short utterances and one of 40 s, with its text."""
    make_corpus(tmp_path / "test", 6)
    soundfile.write(tmp_path / "test" / "long.wav", np.random.default_rng(0).normal(0, 0.1, 40 * 16000), 16000)
    with (tmp_path / "test" / "wav.scp").open("a") as scp, (tmp_path / "test" / "text").open("a") as text:
        scp.write(f"long {tmp_path}/test/long.wav\n")
        text.write("long one two\n")
    return tmp_path / "test"


def door(*words, cwd):
    return subprocess.run([sys.executable, str(ROOT / "decode.py"), *words], cwd=cwd, capture_output=True, text=True)


def texts(path):
    return dict(line.split("\t") for line in path.read_text().splitlines())


def decode_here(model, corpus, output):
    """The texts by the package itself, without hotwords."""
    opened = checkpoint.open_model(str(model))
    data = samples(corpus / "wav.scp", None, opened.prompt)
    options = DecodeOptions(max_new_tokens=8, num_workers=0)
    decode_set(opened, data, [sample.speech_length for sample in data], options, str(output))
    return texts(output)


def test_the_words_that_fun_asr_users_type(model, corpus, tmp_path):
    """A line ``utt<TAB>text`` per row in the order of wav.scp, in a folder that was not there."""
    done = door(f"++model_dir={model}", "++scp_file=test/wav.scp", "++output_file=a/b/hyp.txt", *WORDS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(texts(tmp_path / "a" / "b" / "hyp.txt")) == [*(f"utt{i:03d}" for i in range(6)), "long"]
    assert texts(tmp_path / "a" / "b" / "hyp.txt") == decode_here(model, corpus, tmp_path / "c" / "hyp.txt")


def test_the_help_is_there_at_once_and_a_mistyped_option_is_named(tmp_path):
    started = time.monotonic()
    done = door("--help", cwd=tmp_path)
    assert done.returncode == 0 and "--vad_model" in done.stdout and time.monotonic() - started < 2
    done = door("++modeldir=x", "++scp_file=y", "++output_file=z", cwd=tmp_path)
    assert done.returncode == 2 and "Did you mean model_dir?" in done.stderr


def test_a_set_with_hotwords_and_long_audio_is_decoded_and_scored(model, corpus, tmp_path):
    plain = decode_here(model, corpus, tmp_path / "plain" / "hyp.txt")
    (corpus / "hotwords").write_text("utt001 six,one two\nlong four\n")
    words = ["--model-dir", model, "--data", corpus, "++device=cpu", *WORDS]
    done = bash(ROOT / "decode.sh", *words, env={"PYTHON": sys.executable}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    hot = texts(model / "decode_test" / "hyp.txt")
    assert {key for key, text in hot.items() if text != plain[key]} == {"utt001", "long"}
    long = json.loads((model / "decode_test" / "hyp.jsonl").read_text().splitlines()[-1])
    assert long["segments"][-1]["end"] == 40 and 2 <= len(long["segments"]) <= 4
    assert json.loads((model / "decode_test" / "score.json").read_text())["counts"]["utterances"] == 7


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["++scp_file=test/wav.scp", "++hotwords_file=hot"], "hot:2: utt002: `utterance word,word ...` expected"),
        (["++jsonl_file=test/rows.jsonl", "++hotwords_file=hot"], "go with ++scp_file"),
    ],
)
def test_what_cannot_be_is_told_with_its_place(model, corpus, tmp_path, words, message):
    (tmp_path / "hot").write_text("utt001 six\nutt002 ,\n")
    done = door(f"++model_dir={model}", "++output_file=hyp.txt", *WORDS, *words, cwd=tmp_path)
    assert done.returncode == 1 and message in done.stderr.strip().splitlines()[-1], done.stderr
    assert not (tmp_path / "hyp.txt").exists()
