"""The recipes of phonemes, one upon the other: the quick form always, the whole one with tests/run.sh --full."""

import json

import pytest
from recipe import SIZES, copy_to, loss, run


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return copy_to(tmp_path_factory.mktemp("project"))


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
