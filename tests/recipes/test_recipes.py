"""The recipes, run as a user runs them: the quick form always, the whole one with tests/run.sh --full.

They run in a copy of the project, so that they neither find nor leave a corpus or a run in the checkout.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FULL = bool(os.environ.get("SPEECHLLM_FULL"))
SIZES = ["quick"] + ["full"] * FULL


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of what git tracks."""
    copy = tmp_path_factory.mktemp("project")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in names.split("\0")[:-1]:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name)
    return copy


def run(project, recipe, size, *words):
    env = os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    command = ["bash", str(project / "egs" / recipe / "run.sh"), "--size", size, *words]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
    return project / "egs" / recipe


def score(home, size, name):
    return json.loads((home / "exp" / size / f"decode_{name}" / "score.json").read_text())


def loss(home, size):
    return float(re.findall(r"loss ([\d.]+)", (home / "exp" / size / "train.log").read_text())[-1])


def check(home, size, name, wer, worst_loss):
    found = score(home, size, name)
    assert found["metric"] == "wer" and found["value"] <= wer
    assert found["ci95"][0] <= found["value"] <= found["ci95"][1] and found["normalizer"]["version"]
    assert found["counts"]["missing"] == found["counts"]["unreadable"] == 0
    assert loss(home, size) <= worst_loss
    folder = home / "exp" / size / f"decode_{name}"
    overall = re.findall(r"^Overall -> ([\d.]+) %", (folder / "cer.txt").read_text(), re.M)
    assert float(overall[-1]) == pytest.approx(found["value"], abs=0.006)
    order = [line.split("\t")[0] for line in (folder / "hyp.txt").read_text().splitlines()]
    assert order == [line.split()[0] for line in (home / "data" / size / name / "wav.scp").read_text().splitlines()]


# Bounds of the quick forms: a model that does not hear the audio stays above a loss of 1.3 (mini) and 1.9 (digits),
# which is the entropy of what is said.
@pytest.mark.parametrize("size", SIZES)
def test_mini_asr(project, size):
    home = run(project, "mini/asr", size)
    check(home, size, "test", *{"quick": (88.0, 0.9), "full": (5.0, 0.3)}[size])
    assert score(home, size, "test_zh")["metric"] == "cer"
    if size == "quick":
        again(home, size)


def again(home, size):
    """Batched decoding gives the same text as one by one, on every test utterance; stages run again by themselves."""
    run(home.parents[2], "mini/asr", size, "--stage", "3", "--stop-stage", "4")
    words = [f"++model_dir={home}/exp/{size}", f"++scp_file=data/{size}/test/wav.scp", f"++output_file={home}/one.txt"]
    command = [sys.executable, str(ROOT / "tools" / "decode.py"), *words, "++batch_size=1"]
    subprocess.run(command, cwd=home, check=True, capture_output=True)
    assert (home / "one.txt").read_text() == (home / "exp" / size / "decode_test" / "hyp.txt").read_text()


@pytest.mark.parametrize("size", SIZES)
def test_fsdd_asr(project, shared_data, size):
    home = run(project, "fsdd/asr", size, "--corpus", str(shared_data / "fsdd"))
    check(home, size, "test", *{"quick": (97.0, 1.6), "full": (5.0, 0.3)}[size])


def inventory(home, size):
    lines = (home / "data" / size / "tokenizer" / "phonemes.txt").read_text("utf-8").splitlines()
    return {line.split("\t")[0] for line in lines}


def held_to_phonemes(home, size, run_name, name):
    """Every symbol that was decoded is of the inventory, and has its confidence; the score counts all utterances."""
    folder = home / "exp" / run_name / f"decode_{name}"
    rows = [json.loads(line) for line in (folder / "hyp.jsonl").read_text("utf-8").splitlines()]
    for row in rows:
        assert set(row["text"].split()) <= inventory(home, size)
        assert len(row["confidences"]) == len(row["text"].split())
    found = json.loads((folder / "score.json").read_text())
    assert found["metric"] == "per" and found["counts"]["utterances"] == len(rows)
    assert found["ci95"][0] <= found["value"] <= found["ci95"][1]
    return found


# An encoder that hears nothing leaves the CTC head, and the LLM, at the phonemes' entropy: both terms near 3.
@pytest.mark.parametrize("size", SIZES)
def test_phonemes(project, shared_data, size):
    mini = run(project, "mini/phoneme", size)
    found = held_to_phonemes(mini, size, size, "test")
    assert found["value"] <= {"quick": 95.0, "full": 8.0}[size]
    assert held_to_phonemes(mini, size, size, "test_zh")["normalizer"]["name"] == "phonemes"
    assert loss(mini, size) <= {"quick": 6.0, "full": 0.6}[size]

    timit = run(project, "timit/phoneme", size, "--corpus", str(shared_data / "timit_sample"))
    before, after = (held_to_phonemes(timit, size, name, "test") for name in (f"start_{size}", size))
    assert before["normalizer"]["name"] == "timit39" and before["counts"]["utterances"] == 24
    if size == "full":
        assert after["value"] < before["value"]

    words = ["--corpus", str(shared_data / "speechocean762_part"), "++train_conf.max_epoch=1"]
    held_to_phonemes(run(project, "speechocean762/phoneme", size, *words), size, size, "test")
