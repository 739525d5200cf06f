"""The recipes of alignment, one upon the other: the quick form always, the whole one with tests/run.sh --full."""

import json

import numpy as np
import pytest
from recipe import SIZES, copy_to, run


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return copy_to(tmp_path_factory.mktemp("project"))


def read(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def scored(home, size, folder, name):
    """Times of every word in order and within the audio; the score counts all utterances."""
    decoded = home / "exp" / folder / f"decode_{name}"
    gold, rows = read(home / "data" / size / f"{name}.jsonl"), read(decoded / "hyp.jsonl")
    for row, right in zip(rows, gold, strict=True):
        times = np.ravel(row["timestamps"])
        assert len(row["timestamps"]) == len(right["timestamps"]) == len(row["confidences"])
        assert (np.diff(times) >= -1e-9).all() and 0 <= times[0] <= times[-1] <= right["speech_length"] / 100 + 0.05
    found = json.loads((decoded / "score.json").read_text())
    assert found["metric"] == "aas" and found["counts"]["utterances"] == len(rows) and not found["unscored"]
    assert found["ci95"][0] <= found["value"] <= found["ci95"][1]
    assert "<img" in (decoded / "report.html").read_text("utf-8")
    return found


# A model that hears nothing guesses by the text alone: then a boundary is off by more than 150 ms.
@pytest.mark.parametrize("size", SIZES)
def test_alignment(project, shared_data, size):
    mini = run(project, "mini/align", size)
    found = scored(mini, size, size, "test")
    assert found["value"] <= {"quick": 400.0, "full": 24.0}[size]
    assert found["argmax"] <= {"quick": 400.0, "full": 30.0}[size]

    timit = run(project, "timit/align", size, "--corpus", str(shared_data / "timit_sample"))
    before, after = (scored(timit, size, folder, "test") for folder in (f"{size}/before", size))
    assert after["comparison"]["before"] == before["value"] and after["counts"]["utterances"] == 24
    if size == "full":
        assert after["value"] < before["value"] and after["comparison"]["p"] < 0.01
    scored(timit, size, size, "test_phone")
