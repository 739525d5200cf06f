"""Runs of the aligner as a user types them: over ranks, resumed, the finished model and its checkpoints."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from aligner import RATE, make_aligner, wave

ROOT = Path(__file__).resolve().parents[1]
WORDS = ("turn", "on", "the", "light", "off", "ten")
RANDOM = ["++alignment_conf.slot_prob=0.5", "++alignment_conf.label_spread=0.7", "++dataset_conf.time_warp=0.2"]


def corpus(folder, count, seed):
    """Rows with times that are drawn, so nothing can be learnt but by heart."""
    folder.mkdir()
    draw, rows = np.random.default_rng(seed), []
    for i in range(count):
        sound = wave(draw.uniform(0.6, 2.5), i)
        soundfile.write(folder / f"{i}.wav", sound, RATE)
        words = draw.choice(WORDS, draw.integers(1, 5)).tolist()
        times = np.sort(draw.uniform(0, len(sound) / RATE, 2 * len(words))).round(3).reshape(-1, 2).tolist()
        rows.append({"audio_path": str(folder / f"{i}.wav"), "text": " ".join(words), "timestamps": times})
        rows[-1]["key"] = f"u{i:02d}"
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alignment")
    make_aligner(folder / "model", classifier_dropout=0.0)  # ranks draw holes of their own
    corpus(folder / "train", 24, 0)
    corpus(folder / "dev", 3, 1)
    return folder


def command(home, out, *words, ranks=1):
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    return [
        *(sys.executable, *launch, str(ROOT / "tools" / "train.py"), "++family=qwen3_forced_aligner"),
        *("++task=alignment", f"++model={home}/model", f"++train_data_set_list={home}/train/rows.jsonl"),
        *(f"++valid_data_set_list={home}/dev/rows.jsonl", f"++output_dir={home / out}", "++train_conf.max_epoch=3"),
        *("++dataset_conf.num_workers=1", "++optim_conf.lr=0.001", *RANDOM, *words),
    ]


ENV = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def train(home, out, *words, ranks=1):
    done = subprocess.run(command(home, out, *words, ranks=ranks), env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return home / out


@pytest.fixture(scope="module")
def whole(home):
    return train(home, "whole", "++dataset_conf.batch_size=800")


def losses(folder):
    newest = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    rows = json.loads((newest / "trainer_state.json").read_text())["log_history"]
    return [row["loss"] for row in rows if "loss" in row]


def test_slots_are_counted_over_ranks_and_parts(home, whole):
    split = train(home, "split", "++dataset_conf.batch_size=200", "++train_conf.accum_grad=2", ranks=2)
    one, other = losses(whole), losses(split)
    assert len(one) == len(other) >= 9
    assert max(abs(a - b) for a, b in zip(one, other, strict=True)) < 2e-5  # of losses near 6
    assert one[-1] < one[0]


def test_a_killed_run_ends_with_the_same_weights(home, whole):
    words = command(home, "killed", "++dataset_conf.batch_size=800", "++train_conf.save_checkpoint_interval=1")
    run = subprocess.Popen(words, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((home / "killed").glob("checkpoint-*")) and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    again = train(home, "killed", "++dataset_conf.batch_size=800", "++train_conf.save_checkpoint_interval=1")
    assert (again / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_the_finished_run_aligns_and_so_does_a_checkpoint(home, whole):
    for model in (whole, max(whole.glob("checkpoint-*"))):
        out = home / "aligned" / f"{model.name}.jsonl"
        words = ["++jsonl_file", home / "dev" / "rows.jsonl", "++model_dir", model, "++output_file", out]
        done = subprocess.run([sys.executable, ROOT / "tools" / "align.py", *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert [row["key"] for row in rows] == ["u00", "u01", "u02"]
        for row in rows:
            assert len(row["timestamps"]) == len(row["confidences"]) == len(row["text"].split())
