"""Error rates, their interval and their view."""

import random
import re
import subprocess
import sys
import unicodedata

import jiwer
import pytest

from speechllm.errors import UserError
from speechllm.metrics.bootstrap import ratio_interval
from speechllm.metrics.error_rate import compare_texts, error_rate, score_texts
from speechllm.metrics.error_view import as_html, as_text, worst


def made_rows(alphabet: list[str], number: int) -> tuple[dict[str, str], dict[str, str]]:
    """Random references, and hypotheses with random errors."""
    draw = random.Random(3)
    references = {f"u{i:03}": [draw.choice(alphabet) for _ in range(draw.randint(1, 12))] for i in range(number)}
    hypotheses = {}
    for key, words in references.items():
        heard = [draw.choice([word, word, word, word, draw.choice(alphabet), ""]) for word in words]
        hypotheses[key] = heard + [draw.choice(alphabet)] * draw.choice([0, 0, 1])
    return tuple({k: " ".join(w for w in v if w) for k, v in rows.items()} for rows in (references, hypotheses))


def test_counts_by_hand():
    score = score_texts(
        {"a": "打开WiFi到5G模式", "b": "Turn it on!", "c": "你好"},
        {"a": "打开 wifi 的五G模", "b": "turn it on", "c": ""},
    )
    # a: 打 开 WIFI 到>的 五 G 模 式-; b: all 3 correct; c: 你- 好-
    assert score["counts"] == {"ref_tokens": 13, "cor": 9, "sub": 1, "del": 3, "ins": 0, "utterances": 3, "missing": 0}
    assert score["value"] == round(400 / 13, 4) and score["ser"] == round(200 / 3, 4)
    chinese, english = score["clusters"]["Chinese"], score["clusters"]["English"]
    assert (chinese["value"], english["value"], english["ref_tokens"]) == (50.0, 0.0, 5)
    assert score["metric"] == "cer" and score["normalizer"]["name"] == "mixed"


def test_metric_is_named_after_the_tokens_of_the_references():
    assert score_texts({"a": "hello there 你"}, {"a": "你好你好你好"})["metric"] == "wer"
    assert score_texts({"a": "こんにちは hello"}, {"a": "hello"})["metric"] == "cer"


def test_numbers_are_those_of_the_compute_wer_command(tmp_path):
    alphabet = [*"打开关灯，。到了五", "wifi", "it's", "U.S.", "25%", "don't", "-", "é", "タ", "ไ"]
    references, hypotheses = made_rows(alphabet, 120)
    for name, rows in (("ref", references), ("hyp", hypotheses)):
        (tmp_path / name).write_text("".join(f"{k}\t{v}\n" for k, v in rows.items()), encoding="utf-8")
    tool = [sys.executable, "-m", "compute_wer.cli", "ref", "hyp", "cer.txt"]
    subprocess.run(tool, cwd=tmp_path, check=True, capture_output=True)
    written = (tmp_path / "cer.txt").read_text(encoding="utf-8")
    found = re.findall(r"^(\w+) -> .* N=(\d+) Cor=(\d+) Sub=(\d+) Del=(\d+) Ins=(\d+)$", written, re.M)
    theirs = {name: [int(number) for number in numbers] for name, *numbers in found}
    result = error_rate(references, hypotheses)
    ours = {"Overall": result.total} | result.clusters
    assert {name: list(counts.to_dict().values()) for name, counts in ours.items()} == theirs
    assert {"Overall", "Chinese", "English", "Japanese", "Other"} <= set(theirs)


def test_english_numbers_are_those_of_jiwer():
    references, hypotheses = made_rows(["TURN", "ON", "THE", "LIGHT", "OFF", "NOW", "IN"], 120)
    theirs = jiwer.process_words(list(references.values()), list(hypotheses.values()))
    total = error_rate(references, hypotheses).total
    assert total.errors == theirs.substitutions + theirs.deletions + theirs.insertions
    assert total.percent == pytest.approx(100 * theirs.wer, abs=1e-9)


def test_a_missing_hypothesis_is_all_deleted_and_counted():
    counts = score_texts({"a": "one two four", "b": "yes"}, {"b": "yes"}, "basic")["counts"]
    assert (counts["del"], counts["cor"], counts["missing"], counts["utterances"]) == (3, 1, 1, 2)


def test_words_for_an_empty_reference_are_insertions_in_a_wrong_utterance():
    score = score_texts({"a": "", "b": "yes"}, {"a": "no", "b": "yes"})
    assert (score["value"], score["ser"]) == (100.0, 50.0)


def test_a_hypothesis_without_reference_is_named():
    with pytest.raises(UserError, match=r"2 utterance\(s\) .* first x"):
        score_texts({"a": "yes"}, {"x": "yes", "a": "yes", "y": ""})


def test_references_without_a_word_have_no_rate():
    with pytest.raises(UserError, match="no token in the 1 reference"):
        score_texts({"a": "..."}, {"a": "yes"})


def test_interval_is_that_of_the_normal_approximation_in_a_large_set():
    errors = [1.0] * 100 + [0.0] * 900
    low, high = ratio_interval(errors, [1.0] * 1000)
    half = 1.96 * (0.1 * 0.9 / 1000) ** 0.5
    assert low == pytest.approx(0.1 - half, abs=0.003) and high == pytest.approx(0.1 + half, abs=0.003)
    assert ratio_interval(errors, [1.0] * 1000) == (low, high)


def test_interval_draws_whole_utterances_and_weighs_them_by_length():
    assert ratio_interval([1, 2, 3], [10, 20, 30]) == pytest.approx((0.1, 0.1))
    low, high = ratio_interval([0, 90], [10, 90])
    assert (low, high) == (0.0, 1.0)
    assert ratio_interval([1, 1], [0, 4]) == pytest.approx((0.25, 0.5))  # 2/8 and 2/4; 2/0 is left out


def columns(line: str) -> list[int]:
    """The terminal column at which each word of a line ends."""
    ends, column = [], 0
    for i, char in enumerate(line):
        column += 1 + (unicodedata.east_asian_width(char) in "FW")
        if char != " " and line[i + 1 : i + 2] in ("", " "):
            ends.append(column)
    return ends


def test_worst_utterances_are_aligned_in_the_terminal():
    result = compare_texts({"a": "打开WiFi灯", "b": "yes", "c": "你 好 吗"}, {"a": "打开 wireless 的灯", "b": "yes"})
    first, second = worst(result, 5)  # b has no error
    assert (first.key, second.key) == ("c", "a") and [row.key for row in worst(result, 1)] == ["c"]
    assert "no hypothesis" in as_text(first).splitlines()[0]
    title, reference, hypothesis, marks = as_text(second).splitlines()
    assert title == "a: 2 error(s), 4 reference token(s)"
    assert hypothesis.split() == ["hyp:", "打", "开", "WIRELESS", "的", "灯"]
    assert columns(reference) == columns(hypothesis)
    assert set(columns(marks)) < set(columns(hypothesis)) and sorted(marks.split()) == ["I", "S"]


def test_long_utterances_are_broken_into_lines():
    reference = " ".join(f"word{i}" for i in range(60))
    (utterance,) = worst(error_rate({"a": reference}, {"a": reference + " more"}), 1)
    lines = as_text(utterance).splitlines()
    assert max(map(len, lines)) <= 120 and sum(line.startswith("  ref:") for line in lines) > 1
    heard = [word for line in lines if line.startswith("  ref:") for word in line.split()[1:] if word != "*"]
    assert heard == reference.upper().split()


def test_html_view_escapes_what_people_wrote():
    result = error_rate({"<u&1>": "a < b"}, {"<u&1>": "a & b"})
    view = as_html(result, {"<u&1>": "<script>alert(1)</script>"})
    assert "&lt;u&amp;1&gt;" in view and "<b>&lt;</b><i>&amp;</i>" in view
    assert "<script>" not in view and "&lt;script&gt;" in view
