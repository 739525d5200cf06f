"""The recipes, run as a user runs them: the quick form always, the whole one with tests/run.sh --full."""

import re
import subprocess
import sys

import pytest
from recipe import ROOT, SIZES, copy_to, loss, run, score


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return copy_to(tmp_path_factory.mktemp("project"))


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
