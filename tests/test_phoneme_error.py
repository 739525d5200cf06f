"""Phoneme error rates, folding, and tools/accuracy_eval.py."""

import json
import random

import jiwer
import pytest

from speechllm.config import RunConfig
from speechllm.errors import UserError
from speechllm.metrics import error_view, phoneme_view
from speechllm.metrics.error_rate import compare_texts, score_texts
from speechllm.metrics.phoneme_error import by_phoneme, compare_phonemes, confusions, phoneme_error_rate, rates
from speechllm.tasks.sft import Sft
from speechllm.text import open_normalizer

# TIMIT's own list of symbols (its phoncode.doc).
TIMIT61 = """b d g p t k dx q jh ch s sh z zh f th v dh m n ng em en eng nx l r w y hh hv el iy ih eh ey ae aa aw ay ah
ao oy ow uh uw ux er ax ix axr ax-h bcl dcl gcl pcl tcl kcl pau epi h#"""


def fold(text: str) -> str:
    return open_normalizer("timit39").rows({"u": text})["u"]


def made_rows(number: int, empty: bool) -> tuple[dict[str, str], dict[str, str]]:
    """Random sequences of phonemes that differ in case and in tone, and hypotheses with random errors."""
    draw, inventory = random.Random(5), ["a1", "a2", "A1", "sil", "tʃʰ", "ˈɛ", "ŋ", "n", "r", "5"]
    references, hypotheses = {}, {}
    for i in range(number):
        said = [draw.choice(inventory) for _ in range(draw.randint(0 if empty else 1, 15))]
        heard = [draw.choice([p, p, p, p, draw.choice(inventory), "", f"{p} {draw.choice(inventory)}"]) for p in said]
        references[f"u{i:03}"], hypotheses[f"u{i:03}"] = " ".join(said), " ".join(" ".join(heard).split())
    return references, hypotheses


def test_counts_by_hand():
    references = {"a": "sil hh ax l ow sil", "b": "y eh s", "c": "", "d": "n ow"}
    result = compare_phonemes(references, {"a": "sil hh ah l uw w sil", "b": "y eh", "c": "ah"}, "phonemes")
    # a: ax>ah, ow>uw or w, one insertion; b: s deleted; c: one insertion; d: no hypothesis, two deletions
    assert result.total == (6, 2, 3, 2) and result.metric == "per"
    assert result.total.percent == 100 * 7 / 11
    assert rates(result) == {"accuracy": round(100 * 4 / 11, 4), "correct": round(100 * 6 / 11, 4)}
    assert [row.missing for row in result.utterances] == [False, False, False, True]
    assert [row.counts.errors for row in result.utterances] == [3, 1, 1, 2]


@pytest.mark.parametrize("empty", [False, True])
def test_counts_are_those_of_jiwer(empty):
    references, hypotheses = made_rows(150, empty)
    result = phoneme_error_rate(references, hypotheses)
    theirs = jiwer.process_words(list(references.values()), list(hypotheses.values()))
    assert result.total == (theirs.hits, theirs.substitutions, theirs.deletions, theirs.insertions)
    assert result.total.percent == pytest.approx(100 * theirs.wer, abs=1e-9)
    for row, (key, text) in zip(result.utterances, references.items(), strict=True):
        one = jiwer.process_words(text, hypotheses[key])
        assert row.counts == (one.hits, one.substitutions, one.deletions, one.insertions)
        said, heard = ([side for side in sides if side] for sides in zip(*row.pairs or [("", "")], strict=True))
        assert (said, heard) == (text.split(), hypotheses[key].split())


def test_case_stress_and_tone_are_distinct():
    assert phoneme_error_rate({"a": "AH0 AH0 ma1"}, {"a": "AH1 ah0 ma2"}).total == (0, 3, 0, 0)


def test_folding_of_published_examples():
    # The line in the head of Kaldi's egs/timit/s5/local/timit_norm_trans.pl, folded by hand with Lee and Hon's table.
    assert fold("h# hh ah dx ux w iy dcl d ix f ay n ih q h#") == "sil hh ah dx uw w iy sil d ih f ay n ih sil"
    # TIMIT's sa1 by dr1-fvmh0 ("had your"), where a closure meets a pause: two silences stay two, as in Kaldi.
    assert fold("hv ae dcl epi jh axr") == "hh ae sil sil jh er"
    assert fold("q") == "" and fold("cl vcl sil ax") == "sil sil sil ah"


def test_61_phones_become_39():
    classes = fold(TIMIT61).split()
    assert len(TIMIT61.split()) == 61 and len(classes) == 60 and len(set(classes)) == 39
    assert fold(" ".join(classes)).split() == classes
    assert fold("ao ax ax-h axr hv ix el em en nx eng zh ux") == "aa ah ah er hh ih l m n n ng sh uw"


def test_real_transcripts_are_folded_whole(shared_data):
    files = sorted((shared_data / "timit_sample").glob("*/*.phn"))
    rows = {str(path): " ".join(line.split()[2] for line in path.read_text().splitlines()) for path in files}
    folded = open_normalizer("timit39").rows(rows)
    assert len({symbol for text in folded.values() for symbol in text.split()}) == 39
    for path, text in rows.items():
        assert len(folded[path].split()) == len(text.split()) - text.split().count("q")


def test_a_reference_to_be_folded_must_be_timits_and_a_hypothesis_need_not():
    with pytest.raises(UserError, match=r"u2: AH0 is none of TIMIT's 61 phones; .* --fold none"):
        compare_phonemes({"u1": "ah", "u2": "hh AH0"}, {}, "timit39")
    assert compare_phonemes({"u": "ax-h b"}, {"u": "AH0 b q"}, "timit39").total == (1, 1, 0, 0)


def test_silence_can_be_left_out():
    references, hypotheses = {"u": "h# s pau tcl t epi ao pcl sil"}, {"u": "sil s t ao"}
    assert compare_phonemes(references, hypotheses, "phonemes").total.ref_tokens == 9
    # tcl and pcl belong to their stops, and stay; in the 39 classes they are silence.
    assert compare_phonemes(references, hypotheses, "phonemes", ignore_sil=True).total == (3, 0, 2, 0)
    assert compare_phonemes(references, hypotheses, "timit39", ignore_sil=True).total == (3, 0, 0, 0)


def test_stretches_between_marks_are_scored():
    references = {"u": "score 8 <PH_START> s iy <PH_END> and <PH_START>ae<PH_END>"}
    for said, counts in [
        ("score 2 <PH_START>s iy<PH_END> or <PH_START> eh <PH_END>", (2, 1, 0, 0)),
        ("score 2 <PH_START> s iy <PH_END> and <PH_START> ae", (3, 0, 0, 0)),  # it stopped inside a stretch
        ("s iy <PH_END>", (2, 0, 1, 0)),
        ("<PH_START>", (0, 0, 3, 0)),
        ("ae <PH_END> s <PH_START> s <PH_START> iy", (2, 0, 1, 0)),
    ]:
        assert compare_phonemes(references, {"u": said}, "phonemes").total == counts
    with pytest.raises(UserError, match="u: <PH_START> and <PH_END> do not come in pairs"):
        compare_phonemes({"u": "s iy <PH_END>"}, {}, "phonemes")


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(UserError, match=r"1 utterance\(s\) with a hypothesis but no reference, first x"):
        phoneme_error_rate({"a": "s"}, {"x": "s"})
    with pytest.raises(UserError, match="no token in the 1 reference"):
        phoneme_error_rate({"a": "sil"}, {"a": "s"}, ignore_sil=True)


def test_confusions_and_phonemes_by_hand():
    result = phoneme_error_rate({"a": "s iy s", "b": "s ih", "c": "s"}, {"a": "s ih s", "b": "z iy", "c": "z s"})
    assert confusions(result) == {
        "substitutions": [
            {"ref": "ih", "hyp": "iy", "count": 1},
            {"ref": "iy", "hyp": "ih", "count": 1},
            {"ref": "s", "hyp": "z", "count": 1},
        ],
        "deletions": [],
        "insertions": [{"hyp": "z", "count": 1}],
    }
    table = by_phoneme(result)
    assert list(table) == ["s", "ih", "iy", "z"]
    assert table["s"] == {
        "count": 4, "correct": 3, "substituted": 1, "deleted": 0, "heard": 3, "inserted": 0,
        "recall": 75.0, "precision": 100.0,
    }  # fmt: skip
    assert (table["iy"]["recall"], table["iy"]["precision"]) == (0.0, 0.0)
    assert table["z"] | {"count": 0, "heard": 2, "inserted": 1, "recall": None, "precision": 0.0} == table["z"]


def test_the_dev_set_is_scored_by_phonemes():
    references = {"a": "h# S s q", "b": "ax"}
    rows = [{"key": "a", "text": "pau s s"}, {"key": "b", "text": "ah"}]
    plain = Sft(RunConfig()).score(references, rows, RunConfig(normalizer="phonemes"))
    # h#>pau, S>s, s, q deleted; ax>ah
    assert (plain["metric"], plain["value"], plain["normalizer"]["name"]) == ("per", 80.0, "phonemes")
    score = score_texts({"a": "h# s q", "b": "ax"}, {"a": "pau s", "b": "ah"}, "timit39")
    assert score["value"] == 0.0 and score["ci95"] == [0.0, 0.0] and "clusters" not in score
    assert score["counts"]["ref_tokens"] == 3 and score["normalizer"] == {"name": "timit39", "version": "1"}


def test_views_show_and_escape():
    result = compare_texts({"<u>": "s <i> iy"}, {"<u>": "s ih"}, "phonemes")
    assert "<u>: 2 error(s), 3 reference token(s)" in error_view.as_text(result.utterances[0])
    view = phoneme_view.as_html(confusions(result), by_phoneme(result))
    assert "&lt;i&gt;" in view and "<i>" not in view and "substitutions" in view


@pytest.fixture
def pair(tmp_path):
    """pred.txt and ref.txt, with one substitution, one insertion and one deletion in 8 phonemes."""
    (tmp_path / "ref.txt").write_text("sil sh iy sil\nsil\nhh ae d\n", encoding="utf-8")
    (tmp_path / "pred.txt").write_text("sil s iy sil\nsil aa\nhh ae\n", encoding="utf-8")
    return "--pred_file", "pred.txt", "--ref_file", "ref.txt"


def test_tool_scores_lines(tool, pair, tmp_path):
    done = tool("accuracy_eval", *pair, "--output_json", "all.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("PER 37.50 % (95%: ")
    assert "N=8 Cor=6 Sub=1 Del=1 Ins=1; accuracy 62.50 %, correct 75.00 %" in done.stdout
    assert "substitutions: sh > s 1\n" in done.stdout and "deletions: d 1\ninsertions: aa 1\n" in done.stdout
    score = json.loads((tmp_path / "all.json").read_text())
    assert score["value"] == 37.5 and score["accuracy"] == 62.5 and score["ignore_sil"] is False
    assert score["confusions"]["deletions"] == [{"ref": "d", "count": 1}] and score["phonemes"]["sil"]["count"] == 3
    done = tool("accuracy_eval", *pair, "--ignore_sil", "true", "--fold", "timit39")
    assert "PER 60.00 %" in done.stdout and "N=5 Cor=3 Sub=1 Del=1 Ins=1" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"ref.txt", "pred.txt", "all.json"}


def test_tool_prints_a_readable_number_of_rows(tool, tmp_path):
    (tmp_path / "ref").write_text("".join(f"s p{i:02}\n" for i in range(40)))
    (tmp_path / "pred").write_text("".join(f"s q{i:02}\n" for i in range(40)))
    done = tool("accuracy_eval", "--pred_file", "pred", "--ref_file", "ref", "--output_json", "all.json")
    assert "p09 > q09 1 and 30 more" in done.stdout and "the 20 of 81 phonemes" in done.stdout
    assert len(done.stdout.splitlines()) < 30
    assert len(json.loads((tmp_path / "all.json").read_text())["confusions"]["substitutions"]) == 40


@pytest.mark.parametrize(
    ("pred", "ref", "message"),
    [
        ("s\ns\n", "s\n", "pred.txt has 2 line(s) and ref.txt 1"),
        ("utt1 s iy\nutt2 iy\n", "s iy\niy\n", "pred.txt: the first column looks like utterance ids, first utt1"),
        ("s iy\niy\n", "u1\ts iy\nu2\tiy\n", "ref.txt: the first column looks like utterance ids, first u1"),
        ("".join(f"{i} s iy\n" for i in range(10)), "s\n" * 10, "say --ids true"),
        ("s \udcff\n", "s\n", "pred.txt: not UTF-8"),
        (None, "s\n", "pred.txt: no such file"),
    ],
)
def test_tool_refuses_lines_that_do_not_match(tool, pair, tmp_path, pred, ref, message):
    for name, content in (("pred.txt", pred), ("ref.txt", ref)):
        (tmp_path / name).unlink()
        if content is not None:
            (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
    done = tool("accuracy_eval", *pair)
    assert done.returncode == 1 and message in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("lines", ["sh iy\nhh ae d\ny ao r\n", "".join(f"{vowel}\n" for vowel in "aeiouyæøœɯɤʌɒ")])
def test_tool_takes_lines_that_begin_differently(tool, pair, tmp_path, lines):
    for name in ("ref.txt", "pred.txt"):
        (tmp_path / name).write_text(lines, encoding="utf-8")
    assert tool("accuracy_eval", *pair).stdout.startswith("PER 0.00 %")


def test_tool_matches_by_id(tool, tmp_path):
    (tmp_path / "ref").write_text("u1 s iy\nu2 iy\nu3 ae\n")  # Kaldi's text-phone
    (tmp_path / "hyp.txt").write_text("u2\tiy\nu1\ts\n")  # the decoder's
    done = tool("accuracy_eval", "--pred_file", "hyp.txt", "--ref_file", "ref", "--ids", "true")
    assert "N=4 Cor=2 Sub=0 Del=2 Ins=0" in done.stdout
    assert "1 utterance(s) missing, scored as empty, first u3" in done.stderr


def write_decoded(folder, *rows):
    folder.mkdir(parents=True)
    (folder / "hyp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_tool_takes_the_decoders_rows(tool, tmp_path):
    (tmp_path / "ref").write_text("u1 s iy\nu2 iy\n")
    rows = {"key": "u1", "text": "s iy", "ctc_text": "s ih"}, {"key": "u2", "text": "", "error": "cut off"}
    write_decoded(tmp_path / "d", *rows)
    words = "--pred_file", "d/hyp.jsonl", "--ref_file", "ref"
    assert "N=3 Cor=2 Sub=0 Del=1" in tool("accuracy_eval", *words).stdout
    done = tool("accuracy_eval", *words, "--field", "ctc_text")
    assert "N=3 Cor=1 Sub=1 Del=1" in done.stdout and "1 utterance(s) unreadable" in done.stderr
    done = tool("accuracy_eval", *words, "--field", "ctc")
    assert (
        done.returncode == 1 and "hyp.jsonl:1: u1: no field ctc with phonemes; there are: text, ctc_text" in done.stderr
    )


def test_tool_publishes_a_decoded_set(tool, tmp_path):
    folder = tmp_path / "exp/tiny/decode_test"
    (tmp_path / "ref").write_text("u1 h# s ix\nu2 iy\n")
    write_decoded(folder, {"key": "u1", "text": "h# s ih"}, {"key": "u2", "text": "", "error": "<cut>"})
    words = "--decode_dir", "exp/tiny/decode_test", "--ref_file", "ref", "--fold", "timit39", "--results", "table.md"
    done = tool("accuracy_eval", *words)
    assert done.returncode == 0, done.stderr
    score = json.loads((folder / "score.json").read_text())
    assert (score["metric"], score["value"], score["accuracy"]) == ("per", 25.0, 75.0)
    assert score["counts"]["unreadable"] == 1 and score["normalizer"]["name"] == "timit39"
    assert "| tiny | test | PER | 25.00 % |" in (tmp_path / "table.md").read_text()
    page = (folder / "report.html").read_text()
    assert "<h2>Confusions</h2>" in page and "&lt;cut&gt;" in page and "<cut>" not in page
    done = tool("accuracy_eval", "--ref_file", "ref")
    assert done.returncode == 1 and "give ++pred_file or ++decode_dir" in done.stderr
