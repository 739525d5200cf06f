"""The side-by-side measurements: what they count is right, the table says what was measured, the scripts run.

Golden values are arithmetic by hand; no test looks at a speed.
"""

import json
import subprocess
import sys
import urllib.request

import pytest
from shell import ROOT, bash
from tiny import make_corpus, make_model

from bench import data, head, training
from bench.clock import SKIPPED, Clock
from bench.measure import SIDES, check_equal, interleaved, run
from bench.model import SLIM, random_model, rows
from bench.results import Result, write
from speechllm.errors import UserError


def result(upstream, ours, target=2.0, more_is_better=True):
    return Result("decoding", upstream, ours, "utt/s", more_is_better, target, "texts the same")


def test_the_table_has_medians_ratios_and_whether_the_target_is_met(tmp_path):
    found = [
        result([10.0, 30.0, 20.0], [70.0, 50.0, 60.0]),
        result([10.0, 10.0, 10.0], [15.0, 15.0, 15.0]),
        result([5_000_000.0], [50_000.0], target=None, more_is_better=False),
    ]
    write(tmp_path / "RESULTS.md", found, {"machine": "m", "date": "d"})
    text = (tmp_path / "RESULTS.md").read_text()
    assert "| decoding | 3.00 | 2, met | 20 (10 to 30) | 60 (50 to 70) | utt/s |\n" in text
    assert "| decoding | 1.50 | 2, missed | 10 (10 to 10) | 15 (15 to 15) | utt/s |\n" in text
    assert "| decoding | 100.00 |  | 5,000,000 | 50,000 | utt/s |\n" in text
    assert text.count("texts the same") == 1 and text.endswith("| machine | m |\n| date | d |\n")


def test_a_killed_writing_leaves_the_old_results(tmp_path, monkeypatch):
    (tmp_path / "RESULTS.md").write_text("old")
    monkeypatch.setattr(Result, "line", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "RESULTS.md", [result([1.0], [1.0])], {})
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_the_sides_take_turns():
    order = []
    sides = {side: lambda side=side: order.append(side) or len(order) for side in SIDES}
    assert interleaved(sides, 3, "") == {"upstream": [1, 4, 5], "ours": [2, 3, 6]}
    assert order == ["upstream", "ours", "ours", "upstream", "upstream", "ours"]


def test_nothing_is_timed_where_the_sides_differ():
    with pytest.raises(UserError, match="rows differs: upstream 3, ours 4; nothing was timed"):
        check_equal("rows", 3, 4)


def test_a_command_that_fails_is_an_error_with_its_last_words(tmp_path):
    with pytest.raises(UserError, match=r"-c ended with status 1 \(ValueError: why\)"):
        run(["-c", "raise ValueError('why')"], tmp_path / "log", cwd=tmp_path)


def test_the_clock_leaves_out_the_start_and_the_end(tmp_path, monkeypatch):
    """3 rows a second, but for the first steps, which take an hour each, and for what comes after the last."""
    now = iter([*(3600.0 * i for i in range(SKIPPED)), *(1e6 + second for second in range(5))])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    clock = Clock()
    for _ in range(SKIPPED + 5):
        clock.step(3)
    clock.write(tmp_path / "numbers.json")
    told = json.loads((tmp_path / "numbers.json").read_text())
    assert told["rows_per_second"] == 3 and told["rows"] == 3 * (SKIPPED + 5)


# ---- scp2jsonl


def test_the_server_counts_what_it_sends(tmp_path):
    data.write_wav(tmp_path / "a.wav", 40_000)  # 80,044 bytes
    with data.Server(tmp_path) as server:
        data.Counting.sent = 0
        asked = urllib.request.Request(f"{server.url}a.wav", headers={"Range": "bytes=0-99"})
        assert len(urllib.request.urlopen(asked).read()) == 100
        assert 100 < data.Counting.sent < 500  # the head counts too
        data.Counting.sent = 0
        assert len(urllib.request.urlopen(f"{server.url}a.wav").read()) == 80_044
        assert 80_044 < data.Counting.sent < 80_500


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("native") / "model", format="funasr")


def test_our_side_of_scp2jsonl_over_http(native, tmp_path):
    tool = data.Scp2jsonl(tmp_path / "no_clone", native / "Qwen3-0.6B", tmp_path / "work")
    (tmp_path / "work" / "wavs").mkdir(parents=True)
    with data.Server(tmp_path / "work" / "wavs") as server:
        data.make_set(tmp_path / "work", ["one two"], [2_500_000, 16_000], prefix=server.url)
        data.Counting.sent = 0
        tool.seconds("ours", tmp_path / "work")
        assert data.Counting.sent < 2 * 70_000  # each at most its first 64 KiB, of 5 MB and 32 kB
    first, second = (json.loads(row) for row in tool.rows("ours"))
    assert "key" not in first
    assert {first["speech_length"], second["speech_length"]} == {15623, 98}  # 156.25 s and 1 s: (ms - 25) // 10 + 1


# ---- training and decoding


def test_both_trainers_run_and_tell_the_same_first_loss(native, tmp_path):
    """funasr's is the golden value: the mean over all labels of the one batch."""
    jsonl = training.take_rows(make_corpus(tmp_path / "corpus", 6), tmp_path / "rows.jsonl", 4)
    losses = {}
    for side in SIDES:
        told = training.train(side, tmp_path, native, jsonl, jsonl, training.FREEZE["all parts"], (0, 1))
        assert (told["rows"], told["steps"], told["threads"]) == (4, 1, 1)
        losses[side] = told["first_loss"]
    assert losses["ours"] == pytest.approx(losses["upstream"], rel=training.CLOSE)


# ---- the head


@pytest.mark.parametrize("layout", head.LAYOUTS)
def test_a_row_has_ten_seconds_and_forty_tokens(layout):
    """10 s are 998 frames of 10 ms, 167 stacked ones; natively the LLM hears 21 of them."""
    family, _ = random_model(SLIM, 500, layout, "meta")
    batch = rows(family, 2)
    assert batch["input_features"].shape[1] == 167
    assert (batch["labels"] != -100).sum(1).tolist() == [41, 41]  # and the end mark
    assert (batch["input_ids"] == family.config.audio_token_id).sum(1).tolist() == [
        {"hf": 167, "funasr": 21}[layout]
    ] * 2
    assert batch["labels"][:, -1].tolist() == batch["input_ids"][:, -1].tolist() == [family.end] * 2


def test_memory_is_counted_to_the_byte():
    """By hand: 4 MB live, 8 MB more for a moment; what was there before does not count."""
    import torch

    before = torch.zeros(10**6)

    def step():
        kept = before + 1  # 4 MB
        twice = torch.cat([kept, kept])  # 8 MB
        del twice
        return (kept * 2).sum()  # 4 MB and a number

    assert head.peak(step) == pytest.approx(12_000_000, abs=1000)


def test_logits_at_labels_alone_are_the_same_loss_for_less_memory():
    loss = head.Loss("hf", 2, vocabulary=20_000)
    full, ours = head.check(loss)
    assert ours == pytest.approx(full, rel=1e-5)
    assert loss.share() == pytest.approx(41 / (loss.batch["input_ids"].shape[1]), abs=1e-6)
    for way in (loss.full, loss.ours):
        loss.step(way)
    most = {name: head.peak(lambda name=name: loss.step(getattr(loss, name))) for name in ("full", "ours")}
    logits = 2 * loss.batch["input_ids"].shape[1] * 20_000 * 4
    assert most["full"] > 2 * logits and most["ours"] < most["full"] / 2


# ---- alignment


def test_one_by_one_and_batches_of_alignment_pass_their_gate(tmp_path):
    from aligner import make_aligner

    from bench import align

    make_aligner(tmp_path / "model", "qwen")
    jsonl = make_corpus(tmp_path / "corpus", 5)
    rows = align.take_rows(jsonl.parent, tmp_path / "rows.jsonl", 5)
    for name in align.BUDGETS:
        assert align.ours(name, tmp_path, tmp_path / "model", rows)["rows_per_second"] > 0
    assert align.check_classes(tmp_path).endswith("classes the same")
    made = tmp_path / "ours.jsonl"
    told = [json.loads(line) for line in made.read_text().splitlines()]
    told[2]["classes"][0] += 1
    made.write_text("".join(json.dumps(row) + "\n" for row in told))
    with pytest.raises(UserError, match=r"other classes in a batch, of \['utt002'\].*nothing was timed"):
        align.check_classes(tmp_path)


# ---- the scripts


def test_the_encoder_on_the_real_length_passes_its_gate_and_is_cheaper():
    from bench.encoder import Encoders, seconds

    sizes = {
        "d_model": 32,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "num_mel_bins": 80,
    }
    both = Encoders(sizes)
    assert both.check() < 1e-5 and both.ours().shape == both.padded().shape
    seconds(both.padded), seconds(both.ours)
    assert seconds(both.padded) > seconds(both.ours)


def test_the_gpu_script_runs_small_on_a_cpu():
    words = ["++device=cpu", "++tiny=true", "++peak_tflops=1", "++batches=[1]"]
    done = subprocess.run([sys.executable, ROOT / "bench" / "gpu.py", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = [line.split(" | ")[0] for line in done.stdout.splitlines()]
    assert "| training, 2 rows, encoder frozen: MFU" in names and "| decoding, bfloat16, batch 1: RTFx" in names


def test_flops_of_a_step_by_hand():
    """A frozen encoder saves two thirds of its passes; all else is three passes of 2 FLOP per weight and position."""
    from torch import nn

    from bench import gpu

    family, model = random_model(SLIM, 500, "hf", "meta")
    batch = rows(family, 2)
    encoder = sum(part.weight.numel() for part in model.model.audio_tower.modules() if isinstance(part, nn.Linear))
    saved = gpu.flops(family, model, batch, frozen=False) - gpu.flops(family, model, batch, frozen=True)
    assert saved == 2 * (2 * encoder * 2 * 167 + 4 * 4 * 128 * 2 * 167**2)  # 4 blocks, 128 wide
    fewer = dict(batch, labels=batch["labels"].clone())
    fewer["labels"][:, -1] = -100  # one label less in each of 2 rows, of a head of 500 words, 128 wide
    lost = gpu.flops(family, model, batch, True) - gpu.flops(family, model, fewer, True)
    assert lost == 3 * 2 * 500 * 128 * 2


def test_without_a_gpu_the_gpu_script_says_so():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run([sys.executable, ROOT / "bench" / "gpu.py"], capture_output=True, text=True)
    assert done.returncode == 1 and "torch sees no GPU" in done.stderr


def test_a_clone_without_its_tools_is_refused(tmp_path):
    words = [f"++upstream={tmp_path}", "++parts=[http]"]
    done = subprocess.run([sys.executable, ROOT / "bench" / "compare.py", *words], capture_output=True, text=True)
    assert done.returncode == 1 and "no tools/scp2jsonl.py there" in done.stderr


def test_the_front_door_has_help_and_refuses_what_it_does_not_know():
    assert "--upstream DIR" in bash(ROOT / "bench" / "run.sh", "--help").stdout
    assert bash(ROOT / "bench" / "run.sh", "--clone", "x").returncode == 2
