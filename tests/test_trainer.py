"""Training: exact however a step is split, exact after a kill, one clear message for bad data.

Losses are read from trainer_state.json, where they stand in full precision.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from tiny import make_corpus, make_model

ROOT = Path(__file__).resolve().parents[1]
LORA = ["++llm_conf.use_lora=true", "++llm_conf.lora_conf.lora_dropout=0", "++audio_encoder_conf.freeze=true"]
RANDOM = ["++dataset_conf.speed_perturb=[0.9,1.0,1.1]", "++dataset_conf.spec_aug.time_masks=1"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    make_model(folder / "model")
    make_model(folder / "dropout", dropout=0.3)
    make_corpus(folder / "train", 61)
    make_corpus(folder / "dev", 5, seed=1)
    return folder


def command(home, out, *words, ranks=1, model="model"):
    launch = [sys.executable]
    if ranks > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return [
        *launch,
        str(ROOT / "tools" / "train.py"),
        f"++model={home / model}",
        f"++train_data_set_list={home}/train/rows.jsonl",
        f"++valid_data_set_list={home}/dev/rows.jsonl",
        f"++output_dir={home / out}",
        "++train_conf.max_epoch=2",
        "++dataset_conf.batch_size=400",
        "++dataset_conf.num_workers=1",
        "++optim_conf.lr=0.003",
        "++max_new_tokens=4",
        *words,
    ]


def run(home, out, *words, **how):
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command(home, out, *words, **how), env=env, capture_output=True, text=True, timeout=300)


def losses(home, out):
    newest = max((home / out).glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    rows = json.loads((newest / "trainer_state.json").read_text())["log_history"]
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]


@pytest.fixture(scope="module")
def whole(home):
    """The runs that the others are compared with: one process, one part."""
    for out, words in {"full": [], "lora": LORA}.items():
        done = run(home, out, *words)
        assert done.returncode == 0, done.stderr
    return {out: losses(home, out) for out in ("full", "lora")}


@pytest.mark.parametrize("ranks,accumulation", [(1, 4), (2, 1), (2, 2)])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_rows_of_a_step_give_the_same_loss_however_they_are_split(home, whole, kind, ranks, accumulation):
    out = f"{kind}-{ranks}-{accumulation}"
    words = (LORA if kind == "lora" else []) + [f"++train_conf.accum_grad={accumulation}"]
    words.append(f"++dataset_conf.batch_size={400 // ranks // accumulation}")  # it counts per rank and part
    done = run(home, out, *words, ranks=ranks)
    assert done.returncode == 0, done.stderr
    split = losses(home, out)
    assert [step for step, _ in split] == [step for step, _ in whole[kind]] == list(range(1, len(split) + 1))
    assert len(split) > 10
    assert max(abs(a - b) for (_, a), (_, b) in zip(split, whole[kind], strict=True)) < 1e-5
    assert whole[kind][0][1] > whole[kind][-1][1]  # and it learns


def test_what_a_run_leaves(home, whole):
    names = {path.name for path in (home / "full").iterdir()}
    assert {"run.yaml", "provenance.json", "train.log", "tensorboard", "speechllm.json", "model.safetensors"} <= names
    assert not {"saving"} & names
    said = json.loads((home / "full" / "speechllm.json").read_text())
    assert said["family"] == "fun_asr_nano" and said["task"] == "sft" and said["prompt"]["before"] == "语音转写："
    provenance = json.loads((home / "full" / "provenance.json").read_text())
    assert provenance["command"].endswith("++max_new_tokens=4") and provenance["packages"]["torch"]
    assert yaml.safe_load((home / "full" / "run.yaml").read_text())["train_conf"]["max_epoch"] == 2
    log = (home / "full" / "train.log").read_text()
    assert "audio_adaptor" in log and "train: 61 utterances" in log and "utt/s" in log


def test_a_frozen_part_does_not_change_and_lora_is_merged(home, whole):
    start, lora = load_file(home / "model" / "model.safetensors"), load_file(home / "lora" / "model.safetensors")
    assert set(start) == set(lora)
    moved = {name for name in start if not start[name].equal(lora[name])}
    assert not any("audio_tower" in name or "embed_tokens" in name or "norm" in name for name in moved - adaptor(start))
    assert adaptor(start) <= moved and any("language_model" in name for name in moved)


def adaptor(tensors):
    # The keys' projection has no gradient from its bias: softmax does not see what all keys share.
    return {name for name in tensors if "multi_modal_projector" in name and not name.endswith("k_proj.bias")}


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_killed_at_a_random_moment_and_resumed_equals_the_uninterrupted_one(home, ranks):
    words = [*RANDOM, "++train_conf.save_checkpoint_interval=3", "++train_conf.max_epoch=4"]
    straight = run(home, f"straight-{ranks}", *words, ranks=ranks, model="dropout")
    assert straight.returncode == 0, straight.stderr
    out, draw = f"killed-{ranks}", random.Random()
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    kills = 0
    while kills < (5 if ranks == 1 else 2):
        with open(home / f"{out}.{kills}.log", "w") as log:
            started = subprocess.Popen(
                command(home, out, *words, ranks=ranks, model="dropout"),
                env=env,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            before = len(list((home / out).glob("checkpoint-*"))) if (home / out).exists() else 0
            while started.poll() is None and len(list((home / out).glob("checkpoint-*"))) <= before:
                time.sleep(0.02)
            time.sleep(draw.uniform(0, 1.0))
            if started.poll() is None:
                os.killpg(started.pid, signal.SIGKILL)
            started.wait()
        kills += 1
    done = run(home, out, *words, ranks=ranks, model="dropout")
    assert done.returncode == 0, done.stderr
    assert losses(home, out) == losses(home, f"straight-{ranks}")
    ours, theirs = (load_file(home / name / "model.safetensors") for name in (out, f"straight-{ranks}"))
    assert all(tensor.equal(theirs[name]) for name, tensor in ours.items())


def test_a_continuation_that_is_another_run_is_refused(home, whole):
    done = run(home, "full", "++optim_conf.lr=0.1")
    assert done.returncode == 1
    assert "optim_conf.lr 0.003 -> 0.1" in done.stderr.strip().splitlines()[-1]
    done = run(home, "full", "++train_conf.resume=false")
    assert done.returncode == 1 and "holds checkpoints of an earlier run" in done.stderr.strip().splitlines()[-1]


def test_best_checkpoints_are_kept_by_score(home):
    words = ["++train_conf.keep_nbest_models=2", "++train_conf.avg_nbest_model=2", "++train_conf.max_epoch=6"]
    done = run(home, "nbest", *words)
    assert done.returncode == 0, done.stderr
    kept = {path.name: path for path in (home / "nbest").glob("checkpoint-*")}
    scores = [json.loads((path / "score.json").read_text())["value"] for path in kept.values()]
    log = (home / "nbest" / "train.log").read_text()
    assert log.count("dev at step") == 6 and len(kept) in (2, 3) and "mean of the 2 best" in log
    seen = [float(line.rsplit(" ", 1)[1]) for line in log.splitlines() if "dev at step" in line]
    assert round(min(scores), 2) == min(seen)


def test_bad_audio_stops_training_with_one_message(home, tmp_path):
    rows = (home / "train" / "rows.jsonl").read_text().replace("utt007.wav", "gone.wav")
    (tmp_path / "rows.jsonl").write_text(rows)
    done = run(home, "bad", f"++train_data_set_list={tmp_path}/rows.jsonl")
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith("error: utterance utt007") and "no such file" in last
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "line,said",
    [
        ("{not json", "rows.jsonl:62: not JSON"),
        ('{"messages": []}', "rows.jsonl:62"),
        ("", "utterance utt003 stands on line 4 already"),
    ],
)
def test_a_bad_line_of_the_jsonl_is_named(home, tmp_path, line, said):
    text = (home / "train" / "rows.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(text + (line or text.splitlines()[3]) + "\n")
    done = run(home, "bad-line", f"++train_data_set_list={tmp_path}/rows.jsonl")
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith("error: ") and said in last


def test_the_largest_batch_is_rehearsed_without_a_trace(home, tmp_path, monkeypatch):
    import torch

    from speechllm import cli
    from speechllm.config import RunConfig
    from speechllm.errors import UserError
    from speechllm.formats.jsonl import JsonlFile
    from speechllm.models import open_family
    from speechllm.tasks import open_task
    from speechllm.trainer import Objective, SpeechTrainer

    family = open_family("fun_asr_nano", str(home / "dropout"))
    model, task = family.load(), open_task("sft", family)
    config = cli.parse(RunConfig, [f"++output_dir={tmp_path}", "++dataset_conf.batch_size=400", *RANDOM])
    data = JsonlFile(home / "train" / "rows.jsonl")
    trainer = SpeechTrainer(config, Objective(family, task, model, []), data, lambda place: {})
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state, seen = torch.random.get_rng_state(), []
    monkeypatch.setattr(task, "loss", lambda *words: seen.append(words[2]) or type(task).loss(task, *words))
    trainer.rehearse(trainer.model)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(tensor.equal(weights[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    cells = max(len(rows) * max(data.sizes[i] for i in rows) for rows in trainer.sampler().steps())
    rows = len(seen[0]["input_ids"])
    assert any(rows * size == cells for size in data.sizes)

    def full(*words):
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(task, "loss", full)
    with pytest.raises(UserError, match=rf"out of memory on the largest batch \({rows} utterances.*batch_size"):
        trainer.rehearse(trainer.model)
