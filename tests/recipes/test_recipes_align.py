"""The recipes of alignment, one upon the other: the quick form always, the whole one with tests/run.sh --full."""

import json
import shutil

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


def own_folder(home, folder, name, count):
    """Recordings of a set, as somebody might have them: with texts alone, or with times in a CTM each."""
    folder.mkdir()
    for row in read(home / "data" / "quick" / f"{name}.jsonl")[:count]:
        shutil.copy(home / row["audio_path"], folder / f"{row['key']}.wav")
        if name == "train":
            (folder / f"{row['key']}.txt").write_text(row["text"])
            continue
        words = zip(row["text"].split(), row["timestamps"], strict=True)
        lines = [f"{row['key']} 1 {start:.3f} {end - start:.3f} {word}\n" for word, (start, end) in words]
        (folder / f"{row['key']}.ctm").write_text("".join(lines))


def of_ones_own(project, mini, folder):
    """The recipe for somebody's recordings: texts alone to train on, times to test by."""
    own_folder(mini, folder / "my train", "train", 12)
    own_folder(mini, folder / "my test", "test", 6)
    folders = ["--train", str(folder / "my train"), "--test", str(folder / "my test")]
    home = run(project, "custom/align", "quick", *folders, "--model", str(mini / "exp/quick"), "--min-confidence", "0")
    assert len(read(home / "data" / "quick" / "train_labels.jsonl")) == 12
    found = json.loads((home / "exp" / "quick" / "decode_test" / "score.json").read_text())
    assert found["counts"]["utterances"] == found["comparison"]["utterances"] == 6
    assert "before quick" in (home / "exp" / "quick" / "RESULTS.md").read_text()


# The quick form trains for three epochs: it shows that the chain runs, and that something was learnt.
@pytest.mark.parametrize("size", SIZES)
def test_alignment(project, shared_data, tmp_path, size):
    mini = run(project, "mini/align", size)
    found = scored(mini, size, size, "test")
    assert found["value"] <= {"quick": 200.0, "full": 28.0}[size]  # measured: 77.9 and 26.1; the aim is 24
    assert found["argmax"] <= {"quick": 200.0, "full": 35.0}[size]  # 32.9 in full; the aim is 30

    timit = run(project, "timit/align", size, "--corpus", str(shared_data / "timit_sample"))
    before, after = (scored(timit, size, folder, "test") for folder in (f"{size}/before", size))
    assert after["comparison"]["before"] == before["value"] and after["counts"]["utterances"] == 24
    if size == "full":
        assert after["value"] < before["value"] and after["comparison"]["p"] < 0.01
    scored(timit, size, size, "test_phone")
    if size == "quick":
        of_ones_own(project, mini, tmp_path)
