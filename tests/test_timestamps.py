"""Scores of word boundaries: against arithmetic by hand, a plain loop, and all sign flips; and their report."""

import base64
import json
import math
import re
import sys
from dataclasses import replace
from itertools import product
from xml.etree import ElementTree

import numpy as np
import pytest
import soundfile
from shell import ROOT, bash
from tiny import WORDS

from speechllm import boundaries
from speechllm.config import DecodeOptions
from speechllm.errors import UserError
from speechllm.formats.aligner import to_row
from speechllm.metrics.timestamps import compare, match, score_rows
from speechllm.metrics.timestamps_view import as_html, as_svg, draw, stretch
from speechllm.sample import Clip, Prompt, Sample, Span, speech_length
from speechllm.views import view


def gold(key, spans, seconds=1.5, language="English", source="x.wav"):
    made = tuple(Span(*span) for span in spans)
    text = " ".join(f"w{number}" for number in range(len(spans)))
    length = speech_length(seconds)
    return Sample(key, Clip(source), Prompt(), text, length, len(text), f"gold.jsonl:{key}", made, language)


def row(key, times, classes=None, inversions=0):
    """As the task predicts it, of 80 ms per class."""
    classes = [0] * 2 * len(times) if classes is None else classes
    words = [f"w{number}" for number in range(len(times))]
    told = {"words": words, "timestamps": times, "confidences": [0.5] * len(times), "classes": classes, "step": 0.08}
    return {"key": key, "text": " ".join(words)} | told | {"inversions": inversions}


def by_key(samples):
    return {sample.key: sample for sample in samples}


def test_numbers_by_hand():
    references = by_key(
        [
            gold("a", [(0.1, 0.4), (0.4, 1.0)]),
            gold("b", [(0.5, 0.9)], seconds=40, language="Chinese"),
        ]
    )
    rows = [
        row("b", [[0.7, 0.7]], [6, 10]),  # 200 and 200 ms off; 480 and 800 by argmax: 20 and 100
        row("a", [[0.1, 0.42], [0.45, 0.98]], [1, 5, 4, 12], inversions=1),  # 0, 20, 50, 20
    ]  # by argmax 80, 400, 320, 960, in which 320 gives way to the 400 before it: 20, 0, 0, 40
    score = score_rows(references, rows)
    assert (score["metric"], score["unit"]) == ("aas", "ms")
    assert score["value"] == round(490 / 6, 4)
    assert score["start"] == round((0 + 50 + 200) / 3, 4) and score["end"] == 80.0
    assert score["median"] == 35.0 and score["p90"] == 200.0  # of 0 20 20 50 200 200
    assert score["within"] == {"20": 50.0, "50": round(400 / 6, 4), "100": round(400 / 6, 4)}
    assert score["zero_length"] == round(100 / 3, 4)
    assert score["inversions"] == {"total": 1, "per_100_slots": round(100 / 6, 4)}
    assert score["by_language"] == {
        "Chinese": {"value": 200.0, "utterances": 1, "words": 1},
        "English": {"value": 22.5, "utterances": 1, "words": 2},
    }
    assert [(name, part["value"]) for name, part in score["by_duration"].items()] == [("0-2", 22.5), ("30-", 200.0)]
    assert score["counts"] == {"utterances": 2, "words": 3, "missing": 0, "unreadable": 0}
    assert score["argmax"] == 30.0  # (20 + 0 + 0 + 40 + 20 + 100) / 6


def plain(references, rows):
    """The score by a loop over every slot, nothing vectorised."""
    errors, late, argmax = [], {0: [], 1: []}, []
    for row in rows:
        repaired, _ = boundaries.repair(np.array([round(c * row["step"] * 1000) for c in row["classes"]]))
        for number, (times, span) in enumerate(zip(row["timestamps"], references[row["key"]].spans, strict=True)):
            for side in (0, 1):
                errors.append(abs(times[side] - span[side]) * 1000)
                late[side].append(errors[-1])
                argmax.append(abs(repaired[2 * number + side] - span[side] * 1000))
    ordered, place = sorted(errors), 0.9 * (len(errors) - 1)
    low = math.floor(place)
    return {
        "value": sum(errors) / len(errors),
        "start": sum(late[0]) / len(late[0]),
        "end": sum(late[1]) / len(late[1]),
        "median": (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2,
        "p90": ordered[low] + (place - low) * (ordered[low + 1] - ordered[low]),
        "argmax": sum(argmax) / len(argmax),
        "within": {str(limit): 100 * sum(error <= limit for error in errors) / len(errors) for limit in (20, 50, 100)},
    }


def random_set(seed, utterances, off=0.05):
    draw = np.random.default_rng(seed)
    samples, rows = [], []
    for number in range(utterances):
        times = np.sort(draw.uniform(0, 9, 2 * draw.integers(1, 30)))
        heard = np.sort(times + draw.normal(0, off, len(times)).round(4)).clip(0)
        classes = (heard / 0.08 + draw.normal(0, 1, len(times))).round().astype(int).clip(0)
        samples.append(gold(f"u{number:03d}", times.reshape(-1, 2).tolist(), 9))
        rows.append(row(samples[-1].key, heard.reshape(-1, 2).tolist(), classes.tolist()))
    return by_key(samples), rows


def test_as_a_plain_loop_has_it():
    references, rows = random_set(0, 80)
    score, wanted = score_rows(references, rows), plain(references, rows)
    for name in wanted.keys() - {"within"}:
        assert score[name] == pytest.approx(wanted[name], abs=1e-3), name
    assert score["within"] == pytest.approx(wanted["within"], abs=1e-3)
    low, high = score["ci95"]
    means = [
        np.abs(1000 * (np.array(row["timestamps"]) - np.array(references[row["key"]].spans))).mean() for row in rows
    ]
    assert low < score["value"] < high
    assert high - low == pytest.approx(2 * 1.96 * np.std(means) / math.sqrt(len(means)), rel=0.4)  # normal theory
    assert score == score_rows(references, rows[::-1])  # whatever the order of the rows


def test_comparison_against_all_sign_flips():
    references = by_key([gold(f"u{number}", [(1.0, 2.0)] * (number + 1)) for number in range(6)])
    off = [(0.09, 0.02), (0.05, 0.04), (0.03, 0.06), (0.08, 0.01), (0.07, 0.07), (0.06, 0.02)]
    sides = [
        [row(key, [[1 + late[side], 2.0]] * (n + 1)) for n, (key, late) in enumerate(zip(references, off, strict=True))]
        for side in (0, 1)
    ]
    found = compare(references, *sides)
    change = [1000 * (n + 1) * (after - before) for n, (before, after) in enumerate(off)]
    assert found["difference"] == pytest.approx(sum(change) / 42, abs=1e-3)
    assert found["after"] - found["before"] == pytest.approx(found["difference"], abs=1e-3)
    flips = [
        sum(sign * value for sign, value in zip(signs, change, strict=True)) for signs in product((1, -1), repeat=6)
    ]
    assert found["p"] == pytest.approx(np.mean([abs(flip) >= abs(sum(change)) - 1e-6 for flip in flips]))
    assert (found["improved"], found["worsened"], found["equal"]) == (4, 1, 1)
    swapped = compare(references, *sides[::-1])
    assert swapped["difference"] == -found["difference"] and swapped["p"] == found["p"]
    assert compare(references, sides[0], sides[0])["p"] == 1.0


def test_comparison_tells_noise_from_a_gain():
    references, rows = random_set(1, 200)
    _, other = random_set(2, 200)
    jitter = np.random.default_rng(3)

    def moved(shift):
        """Every time nearer to or further from gold by chance, and by ``shift`` of its error."""
        made = []
        for one in rows:
            spans = np.array(references[one["key"]].spans)
            factor = 1 + shift + jitter.normal(0, 0.2)
            made.append(one | {"timestamps": (spans + factor * (np.array(one["timestamps"]) - spans)).tolist()})
        return made

    gain, noise = compare(references, rows, moved(-0.1)), compare(references, rows, moved(0.0))
    assert gain["p"] < 0.001 and gain["ci95"][1] < 0 and gain["improved"] > gain["worsened"]
    assert noise["p"] > 0.05 and noise["ci95"][0] < 0 < noise["ci95"][1]
    fewer = compare(references, rows[1:], rows[:-2])
    assert (fewer["utterances"], fewer["unpaired"], fewer["difference"]) == (197, 3, 0.0)
    with pytest.raises(UserError, match="no utterance has times in both"):
        compare(references, rows[:9], rows[9:])
    with pytest.raises(UserError, match="words were aligned"):
        compare(references, rows, other)


def test_what_has_no_times_is_in_no_number_and_is_named():
    references = by_key([gold(key, [(0.1, 0.4)]) for key in "abc"])
    rows = [row("b", [[0.2, 0.4]]), {"key": "a", "text": "", "error": "<b>cut off</b>"}]
    score = score_rows(references, rows)
    assert score["value"] == 50.0 and score["unscored"] == ["a", "c"]
    assert score["counts"] == {"utterances": 1, "words": 1, "missing": 1, "unreadable": 1}
    page = as_html(*match(references, rows))
    assert "2 utterance(s) have no times" in page and "&lt;b&gt;cut off&lt;/b&gt;" in page and "no hypothesis" in page
    with pytest.raises(UserError, match=r"none of 3 .* a: <b>cut off</b>"):
        score_rows(references, rows[1:])


def test_what_does_not_fit_is_refused():
    references = by_key([gold("a", [(0.1, 0.4), (0.4, 0.5)])])
    with pytest.raises(UserError, match=r"gold.jsonl:a: utterance a: 1 words .* 2 have gold .*\['w0'\].*\(0.1, 0.4\)"):
        score_rows(references, [row("a", [[0.1, 0.4]])])
    with pytest.raises(UserError, match="no reference, first z"):
        score_rows(references, [row("z", [[0.1, 0.4]])])
    with pytest.raises(UserError, match=r"no words, timestamps, .*step, inversions in its row"):
        score_rows(references, [{"key": "a", "text": "w0 w1"}])
    without = {"a": replace(references["a"], spans=None)}
    with pytest.raises(UserError, match="utterance a: no timestamps"):
        score_rows(without, [row("a", [[0.1, 0.4]])])


def tone(path, seconds):
    wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * 16000)) / 16000)
    soundfile.write(path, wave, 16000)
    return wave.astype(np.float32)


def shown(svg):
    """The texts of a picture."""
    return [
        "".join(node.itertext()).strip()
        for node in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    ]


@pytest.mark.filterwarnings("error")
def test_picture_has_both_sides_words_and_errors(tmp_path):
    wave = tone(tmp_path / "a.wav", 2)
    sample = gold("a", [(0.2, 0.8), (0.9, 1.5)])
    heard = row("a", [[0.23, 0.8], [0.75, 1.6]]) | {"words": ["打开", "$x^2$<b>"]}
    [utterance], _ = match({"a": sample}, [heard])
    texts = shown(as_svg(draw(utterance, wave)))
    assert texts.count("打开") == texts.count("$x^2$<b>") == 2  # in gold and in predicted
    assert {"gold", "predicted", "+30", "+0", "−150", "+100"} <= set(texts)
    assert shown(as_svg(draw(utterance, np.zeros_like(wave)))) == texts  # silence too has a spectrogram


def test_of_a_long_utterance_the_worst_place_is_drawn(tmp_path):
    spans = [(second + 0.2, second + 0.8) for second in range(60)]
    times = [list(span) for span in spans]
    times[40] = [40.4, 40.8]
    [utterance], _ = match({"a": gold("a", spans, 60)}, [row("a", times)])
    first, last = stretch(utterance, 60.0)
    assert first < 40.2 < last and last - first == pytest.approx(5)
    texts = shown(as_svg(draw(utterance, tone(tmp_path / "a.wav", 60))))
    assert "w40" in texts and "+200" in texts and not {"w30", "w50"} & set(texts)
    times[40], times[59] = list(spans[40]), [59.2, 59.9]
    [utterance], _ = match({"a": gold("a", spans, 60)}, [row("a", times)])
    assert stretch(utterance, 60.0) == (55.0, 60.0)


def test_page_ends_after_the_worst_words(monkeypatch):
    references = by_key([gold(f"u{number}", [(0.1, 0.4)] * 2, source="gone.wav") for number in range(4)])
    found, _ = match(references, [row(key, [[0.1, 0.4 + n / 10]] * 2) for n, key in enumerate(references)])
    page = as_html(found, {})
    assert all(f"{key}: " in page for key in references) and "worst are shown" not in page
    monkeypatch.setattr("speechllm.metrics.timestamps_view.SHOWN", 3)
    page = as_html(found, {})
    assert "the 2 worst are shown" in page and "u2: " in page and "u1: " not in page


def write(path, objects):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(thing, ensure_ascii=False) + "\n" for thing in objects), encoding="utf-8")
    return path


def decoded(folder, rows):
    write(folder / "hyp.jsonl", rows)
    (folder / "decode.json").write_text(json.dumps({"task": "alignment", "model_dir": "exp/tiny", "command": "decode"}))
    return folder


def test_stage_4(tmp_path):
    tone(tmp_path / "a.wav", 2)
    samples = [gold(f"u{number:02d}", [(0.2, 0.8), (0.9, 1.5)], 2) for number in range(14)]
    for sample in samples:
        source = tmp_path / ("gone.wav" if sample.key == "u12" else "a.wav")
        samples[samples.index(sample)] = replace(sample, clip=Clip(str(source)))
    write(tmp_path / "gold.jsonl", map(to_row, samples))
    error = {"key": "u13", "text": "", "error": "cut off"}
    # of utterance n every start is off by n (before: 5 + 2 n) times 5 ms
    rows = [row(f"u{n:02d}", [[0.2 + n / 200, 0.8], [0.9 + n / 200, 1.5]]) for n in range(13)]
    old = [row(f"u{n:02d}", [[0.225 + n / 100, 0.8], [0.925 + n / 100, 1.5]]) for n in range(13)]
    after = decoded(tmp_path / "exp/tuned/decode_test", [*rows, error])
    before = decoded(tmp_path / "exp/base/decode_test", [*old, error])
    words = (ROOT / "local/score_alignment.sh", tmp_path / "gold.jsonl", after, "R.md", f"++baseline={before}")
    done = bash(*words, env={"PYTHON": sys.executable}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    score = json.loads((after / "score.json").read_text())
    assert (score["metric"], score["value"], score["checkpoint"]) == ("aas", 15.0, "exp/tiny")
    found = score["comparison"]
    assert (found["baseline"], found["before"], found["difference"]) == (str(before), 42.5, -27.5)
    assert found["improved"] == 13 and found["p"] == pytest.approx(2 / 2**13, abs=1e-4)
    assert re.search(r"AAS 15\.00 ms .*; before 42\.50, difference -27\.50 \(95%: -.* to -.*\), p 0\.0002", done.stderr)
    assert "1 utterance(s) unreadable, in none of the numbers; of all such the first is u13" in done.stderr
    assert done.stdout.splitlines()[-1].startswith("u12: 30.0 ms over 2 word(s); worst: the start of word")
    assert "| tuned | test | AAS | 15.00 ms |" in (tmp_path / "R.md").read_text()
    page = (after / "report.html").read_text(encoding="utf-8")
    pictures = re.findall(r'src="data:image/svg\+xml;base64,([^"]*)"', page)
    assert len(pictures) == 9 and page.count("no picture: ") == 1 and "gone.wav" in page  # of the worst ten
    assert "w1" in shown(base64.b64decode(pictures[0]))
    assert not re.search(r'(src|href)="(?!data:)', page)  # nothing is loaded
    assert page.index("u12: 30.0 ms") < page.index("u11: 27.5 ms") < page.index("u00: 0.0 ms")
    assert "<tr><td>w0<td>0.200 to 0.800<td>0.255 to 0.800" in page and "+55<td" in page and "cut off" in page


@pytest.mark.parametrize(
    ("told", "words", "message"),
    [
        ({"task": "alignment"}, (), "hyp.jsonl: no such file"),
        ({"task": "dance"}, (), "task dance; what is scored here is sft, alignment"),
        ({"task": "sft"}, ("++baseline=x",), "a baseline is for alignments"),
    ],
)
def test_bad_input_is_named(tool, tmp_path, told, words, message):
    write(tmp_path / "gold.jsonl", [to_row(gold("a", [(0.2, 0.8)]))])
    (tmp_path / "decode.json").write_text(json.dumps(told))
    done = tool("report", "++ref=gold.jsonl", "++decode_dir=.", *words)
    assert done.returncode == 1 and message in done.stderr.splitlines()[-1]


def test_what_an_aligner_decodes_is_scored(tmp_path):
    from transformers import set_seed

    from speechllm.checkpoint import open_model
    from speechllm.decode import decode_set
    from speechllm.models.qwen3_forced_aligner import Qwen3ForcedAligner
    from speechllm.models.tiny import train_tokenizer

    tone(tmp_path / "a.wav", 2)
    samples = [gold(f"u{number}", [(0.2, 0.8), (0.9, 1.5)], 2, source=str(tmp_path / "a.wav")) for number in range(3)]
    write(tmp_path / "gold.jsonl", map(to_row, samples))
    audio = {"num_mel_bins": 80, "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2}
    audio |= {"encoder_ffn_dim": 32, "downsample_hidden_size": 8, "output_dim": 16}
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True}
    sizes = {"num_labels": 50, "audio_config": audio, "text_config": text}
    set_seed(7)
    tokenizer = train_tokenizer(WORDS * 9, 400, Qwen3ForcedAligner.special_tokens)
    Qwen3ForcedAligner.create(sizes, tokenizer, str(tmp_path / "model"), "hf")
    opened, output = open_model(str(tmp_path / "model")), tmp_path / "decode_test/hyp.txt"
    decode_set(opened, samples, [199] * 3, DecodeOptions(num_workers=0), str(output))
    score = view(output.parent, str(tmp_path / "gold.jsonl"), "mixed", "").score
    assert score["metric"] == "aas" and score["counts"]["words"] == 6 and score["argmax"] > 0
