"""Pronunciation against a canonical sequence, and tools/pronunciation_eval.py."""

import json
import math

import pytest

from speechllm.errors import UserError
from speechllm.metrics.phoneme_files import Heard
from speechllm.metrics.pronunciation import assess, correlation, detection, summary, utterance_correlation

CANONICAL = {"u1": "M AY0 K", "u2": "L AY0 K S"}
HEARD = {
    "u1": Heard("sil M AA0 K AH0 sil", [0.5, 0.9, 0.8, 0.6, 0.4, 0.5]),
    "u2": Heard("S L AY0 K", [0.3, 1.0, 0.7, 0.4]),
}
# One score below 0.5 per mispronounced phoneme, as speechocean762 has them.
LABELS = {"u1": [2.0, 0.4, 1.8], "u2": [2, 1, 2, 0]}


def test_phonemes_are_scored_by_their_confidence():
    first, second = assess(CANONICAL, HEARD)
    assert [phone.to_dict() for phone in first.phones] == [
        {"phone": "M", "result": "correct", "heard": "M", "score": 0.9},
        {"phone": "AY0", "result": "substituted", "heard": "AA0", "score": 0.0},
        {"phone": "K", "result": "correct", "heard": "K", "score": 0.6},
    ]
    assert first.score == 0.5 and first.insertions == [("AH0", 3)]
    assert [phone.result for phone in second.phones] == ["correct", "correct", "correct", "deleted"]
    assert second.score == 0.525 and second.insertions == [("S", 0)]
    assert summary([first, second]) == {
        "utterances": 2, "missing": 0, "phonemes": 7, "correct": 5, "substituted": 1, "deleted": 1, "inserted": 2,
        "score": 0.5125,
    }  # fmt: skip


def test_without_confidences_a_correct_phoneme_scores_one():
    (row,) = assess({"u": "M AY0 K"}, {"u": Heard("M K")})
    assert [phone.score for phone in row.phones] == [1.0, 0.0, 1.0] and row.score == 0.6667


def test_marks_have_confidences_too():
    heard = Heard("AH0 <PH_START> M K <PH_END>", [0.1, 0.2, 0.9, 0.6, 0.3])
    (row,) = assess({"u": "M K"}, {"u": heard})
    assert [phone.score for phone in row.phones] == [0.9, 0.6] and not row.insertions


def test_an_utterance_that_was_not_recognised_is_deleted():
    (row,) = assess({"u": "M AY0"}, {})
    assert row.missing and row.score == 0 and [phone.result for phone in row.phones] == ["deleted"] * 2


@pytest.mark.parametrize(
    ("canonical", "heard", "message"),
    [
        ({"u": "M"}, {"x": Heard("M")}, "no reference, first x"),
        ({"u": "sil"}, {}, "u: no phoneme in its canonical sequence"),
        ({"u": "M"}, {"u": Heard("M K", [0.5])}, "u: 2 phonemes with 1 confidences"),
        ({"u": "M"}, {"u": Heard("M", [-0.7])}, "u: confidences from 0 to 1 expected"),
    ],
)
def test_what_cannot_be_assessed_is_named(canonical, heard, message):
    with pytest.raises(UserError, match=message):
        assess(canonical, heard)


def test_detection_by_hand():
    # Detected: AY0 of u1 (rightly), S of u2 (rightly). With the threshold at 1.5, AY0 of u2 is missed.
    rows = assess(CANONICAL, HEARD)
    found = detection(rows, LABELS, 0.5)
    assert (found["precision"], found["recall"], found["f1"]) == (1.0, 1.0, 1.0)
    found = detection(rows, LABELS, 1.5)
    assert (found["precision"], found["recall"], found["f1"]) == (1.0, 0.6667, 0.8)
    assert (found["mispronounced"], found["detected"], found["both"], found["phonemes"]) == (3, 2, 2, 7)
    # u2 alone is labelled: nothing else counts. P = 1/1, and with all of it wrong R = 1/4, F1 = 2/5.
    found = detection(rows, {"u2": [0, 0, 0, 0]}, 0.5)
    assert (found["precision"], found["recall"], found["f1"], found["utterances"]) == (1.0, 0.25, 0.4, 1)


def test_detection_by_a_perfect_and_a_useless_system():
    canonical, labels = {"u": "a b c d"}, {"u": [2, 0, 2, 0]}
    perfect = detection(assess(canonical, {"u": Heard("a x c")}), labels, 0.5)
    assert (perfect["precision"], perfect["recall"], perfect["f1"]) == (1.0, 1.0, 1.0)
    inverted = detection(assess(canonical, {"u": Heard("x b x d")}), labels, 0.5)
    assert (inverted["precision"], inverted["recall"], inverted["f1"]) == (0.0, 0.0, 0.0)
    blind = detection(assess(canonical, {"u": Heard("a b c d")}), labels, 0.5)
    assert (blind["precision"], blind["recall"], blind["f1"]) == (None, 0.0, 0.0)
    none_wrong = detection(assess(canonical, {"u": Heard("a b c d")}), {"u": [2, 2, 2, 2]}, 0.5)
    assert (none_wrong["precision"], none_wrong["recall"], none_wrong["f1"]) == (None, None, None)


def test_correlation_by_hand():
    # Deviations -1, 0, 1 and -2, 1, 1: covariance 3, variances 2 and 6; ranks 1, 2, 3 and 1, 2.5, 2.5.
    found = correlation([0.1, 0.2, 0.3], [1, 4, 4])
    assert found == {"pearson": round(3 / math.sqrt(12), 4), "spearman": round(1.5 / math.sqrt(3), 4), "pairs": 3}
    found = correlation([0.1, 0.2, 0.9], [1, 8, 27])  # one order, not one line
    assert found["spearman"] == 1.0 and 0.9 < found["pearson"] < 1.0
    assert correlation([0.1, 0.2, 0.3], [3, 2, 1])["pearson"] == -1.0
    useless = correlation([0.0, 1.0, 0.0, 1.0], [1, 1, 2, 2])
    assert (useless["pearson"], useless["spearman"]) == (0.0, 0.0)


def test_constant_scores_have_no_correlation():
    found = correlation([0.2, 0.4, 0.5], [10, 10, 10])
    assert found["pearson"] is found["spearman"] is None and found["undefined"] == "all 3 scores of humans are 10"
    assert "of the model are 1" in correlation([1, 1], [1, 2])["undefined"]
    assert "1 pair(s)" in correlation([1], [1])["undefined"]
    # Equal confidences make equal scores, whatever the rounding of their mean over 2, 3, 6 or 7 phonemes.
    canonical = {f"u{n}": " ".join("a" * n) for n in (2, 3, 6, 7)}
    rows = assess(canonical, {key: Heard(text, [0.7] * len(text.split())) for key, text in canonical.items()})
    assert "all 4" in utterance_correlation(rows, {f"u{n}": [n] for n in (2, 3, 6, 7)})["undefined"]


@pytest.fixture
def files(tmp_path):
    rows = ({"key": key, "text": row.text, "confidences": row.confidences} for key, row in HEARD.items())
    (tmp_path / "hyp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "text-phone").write_text("".join(f"{key} {text}\n" for key, text in CANONICAL.items()))
    (tmp_path / "phones").write_text("".join(f"{key} {' '.join(map(str, row))}\n" for key, row in LABELS.items()))
    (tmp_path / "accuracy").write_text("u1 4\nu2 6\n")
    return "++pred_file=hyp.jsonl", "++canonical_file=text-phone", "++output_file=pron.jsonl"


def test_tool(tool, files, tmp_path):
    human = "++phone_scores=phones", "++utt_scores=accuracy"
    done = tool("pronunciation_eval", *files, *human, "++output_json=all.json")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "pron.jsonl").read_text().splitlines()]
    assert [row["key"] for row in rows] == ["u1", "u2"] and rows[0]["score"] == 0.5
    assert rows[1]["insertions"] == [{"phone": "S", "before": 0}] and rows[1]["phones"][3]["result"] == "deleted"
    found = json.loads((tmp_path / "all.json").read_text())
    assert found["detection"]["f1"] == 1.0 and found["detection"]["threshold"] == 0.5
    assert found["utterance_correlation"] == {"pearson": 1.0, "spearman": 1.0, "pairs": 2}
    assert found["phone_correlation"]["pairs"] == 7 and found["phone_correlation"]["pearson"] > 0.5
    assert "precision 1.0, recall 1.0, f1 1.0" in done.stdout
    assert "utterance correlation: pearson 1.0, spearman 1.0" in done.stdout


def test_tool_says_what_is_not_defined(tool, files, tmp_path):
    (tmp_path / "accuracy").write_text("u1 5\nu2 5\n")
    (tmp_path / "phones").write_text("u1 2 2 2\n")
    human = "++phone_scores=phones", "++utt_scores=accuracy"
    done = tool("pronunciation_eval", *files, *human, "++output_json=all.json")
    assert "pearson undefined, spearman undefined, pairs 2 (all 2 scores of humans are 5)" in done.stdout
    assert "recall undefined" in done.stdout and "no scores of 1 utterance(s), first u2" in done.stderr
    text = (tmp_path / "all.json").read_text()
    assert "NaN" not in text and json.loads(text)["utterance_correlation"]["pearson"] is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("phones", "u1 2 2\n", "phones:1: u1: 2 score(s) for 3 canonical phoneme(s)"),
        ("phones", "\n", "phones: no row in the file"),
        ("phones", "u2 2 2 2 2\nu9 2\n", "phones:2: u9: no canonical sequence"),
        ("accuracy", "u1 4 5\n", "accuracy:1: u1: 2 score(s) for an utterance"),
        ("accuracy", "u1 good\n", "accuracy:1: u1: numbers expected, found 'good'"),
        ("accuracy", "u1 nan\n", "accuracy:1: u1: numbers expected, found 'nan'"),
        ("hyp.jsonl", '{"key": "u1"}\n', "hyp.jsonl:1: u1: no field text"),
        ("hyp.jsonl", "[]\n", "hyp.jsonl:1: not a row"),
        (
            "hyp.jsonl",
            '{"key": "u1", "text": "M"}\n{"key": "u1", "text": "M"}\n',
            "hyp.jsonl:2: utterance u1 stands there",
        ),
    ],
)
def test_tool_names_bad_input(tool, files, tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    done = tool("pronunciation_eval", *files, "++phone_scores=phones", "++utt_scores=accuracy")
    assert done.returncode == 1 and message in done.stderr.splitlines()[-1]
    assert not (tmp_path / "pron.jsonl").exists()


def test_tool_takes_plain_rows(tool, files, tmp_path):
    (tmp_path / "hyp.txt").write_text("u1\tM AY0 K\n")
    done = tool("pronunciation_eval", "++pred_file=hyp.txt", *files[1:])
    assert "2 utterance(s), mean score 0.5000" in done.stdout and "missing 1" in done.stdout
