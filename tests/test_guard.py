"""What comes between: NaN losses, SIGTERM, early stopping. The models are tiny and random."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny import make_corpus, make_model

ROOT = Path(__file__).resolve().parents[1]
# Spoils the losses of some calls in the last rank, then is tools/train.py. argv: the calls, the value, the options.
SPOILED = """
import os, sys, runpy
sys.path.insert(0, {root!r})
calls, value = [int(call) for call in sys.argv[1].split(",")], float(sys.argv[2])
from speechllm.tasks.sft import Sft
plain, seen = Sft.loss, []
def loss(*words):
    seen.append(1)
    last = os.environ.get("RANK", "0") == str(int(os.environ.get("WORLD_SIZE", "1")) - 1)
    return plain(*words) + (value if last and len(seen) in calls else 0.0)
Sft.loss = loss
sys.argv[1:3] = []
runpy.run_path({train!r}, run_name="__main__")
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guard")
    make_model(folder / "model")
    make_corpus(folder / "train", 24)
    make_corpus(folder / "dev", 4, seed=1)
    train = str(ROOT / "tools" / "train.py")
    (folder / "spoiled.py").write_text(SPOILED.format(root=str(ROOT), train=train))
    return folder


def options(home, out, *words):
    return [
        f"++model={home}/model",
        f"++train_data_set_list={home}/train/rows.jsonl",
        f"++valid_data_set_list={home}/dev/rows.jsonl",
        f"++output_dir={home / out}",
        "++dataset_conf.batch_size=300",
        "++dataset_conf.num_workers=1",
        "++train_conf.max_epoch=1",
        "++max_new_tokens=4",
        *words,
    ]


def env():
    return os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def run(*command, ranks=1):
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    words = [sys.executable, *launch, *map(str, command)]
    return subprocess.run(words, env=env(), capture_output=True, text=True, timeout=300)


def log_of(home, out):
    newest = max((home / out).glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return json.loads((newest / "trainer_state.json").read_text())["log_history"]


@pytest.mark.parametrize("ranks,value", [(1, "nan"), (1, "inf"), (2, "nan")])
def test_a_step_whose_loss_is_no_number_is_left_out_and_named(home, ranks, value):
    # The first call is the rehearsal; the third is step 2. inf is added: its gradient is finite, and still no use.
    out = f"spoiled-{ranks}-{value}"
    done = run(home / "spoiled.py", "3", value, *options(home, out), ranks=ranks)
    assert done.returncode == 0, done.stderr
    said = [line for line in (home / out / "train.log").read_text().splitlines() if "left out" in line]
    assert len(said) == 1 and "step 2: the loss is NaN or infinite with utt" in said[0] and "1 of at most 5" in said[0]
    assert all(tensor.isfinite().all() for tensor in load_file(home / out / "model.safetensors").values())
    losses = [row["loss"] for row in log_of(home, out) if "loss" in row]
    assert all(loss == loss and loss < 100 for loss in losses) and all(losses[2:])  # later steps are as ever


def test_a_left_out_step_changes_nothing(home):
    words = options(home, "", "++dataset_conf.batch_size=100000", "++train_conf.max_epoch=1")  # one step
    done = run(home / "spoiled.py", "2", "nan", *words, f"++output_dir={home}/unchanged")
    assert done.returncode == 0, done.stderr
    before, after = (load_file(home / name / "model.safetensors") for name in ("model", "unchanged"))
    assert set(before) == set(after) and all(tensor.equal(after[name]) for name, tensor in before.items())


def test_too_many_bad_steps_end_the_run_with_their_utterances(home):
    words = options(home, "many", "++train_conf.max_bad_steps=1")
    done = run(home / "spoiled.py", "2,4", "nan", *words)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith("error: step 3: the loss is NaN or infinite with utt")
    assert "2 such steps, train_conf.max_bad_steps is 1" in last and "Traceback" not in done.stderr


@pytest.mark.parametrize("ranks", [1, 2])
def test_sigterm_saves_and_the_same_command_goes_on_to_the_same_end(home, ranks):
    words = ["++train_conf.max_epoch=6", "++dataset_conf.batch_size=200"]
    straight = run(ROOT / "tools" / "train.py", *options(home, f"straight-{ranks}", *words), ranks=ranks)
    assert straight.returncode == 0, straight.stderr
    out = f"stopped-{ranks}"
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *launch, str(ROOT / "tools" / "train.py"), *options(home, out, *words)]
    with open(home / "stopped.log", "w") as log:
        started = subprocess.Popen(command, env=env(), stdout=log, stderr=log, start_new_session=True)
        steps = home / out / "train.log"
        while started.poll() is None and not (steps.exists() and " step 2 " in steps.read_text()):
            time.sleep(0.01)
        os.killpg(started.pid, signal.SIGTERM)  # the whole group, the loader's processes too
        started.wait(timeout=120)
    said = (home / "stopped.log").read_text()
    assert started.returncode not in (0, None), said
    assert ranks > 1 or started.returncode == 143
    assert "all is saved" in said and list((home / out).glob("checkpoint-*"))
    assert not (home / out / "speechllm.json").exists()
    done = run(ROOT / "tools" / "train.py", *options(home, out, *words), ranks=ranks)
    assert done.returncode == 0, done.stderr
    ours, theirs = (load_file(home / name / "model.safetensors") for name in (out, f"straight-{ranks}"))
    assert all(tensor.equal(theirs[name]) for name, tensor in ours.items())


def test_early_stopping_counts_validations_without_gain(home):
    # A learning rate of nearly nothing: no validation is better than the first.
    words = ["++optim_conf.lr=1e-12", "++train_conf.early_stop=2", "++train_conf.max_epoch=9"]
    done = run(ROOT / "tools" / "train.py", *options(home, "early", *words))
    assert done.returncode == 0, done.stderr
    log = (home / "early" / "train.log").read_text()
    assert log.count("dev at step") == 3 and "no better score in 2 validations" in log
    assert (home / "early" / "speechllm.json").exists()
    (home / "early" / "speechllm.json").unlink()  # as if it had been killed before it was finished
    again = run(ROOT / "tools" / "train.py", *options(home, "early", *words))
    assert again.returncode == 0 and (home / "early" / "speechllm.json").exists()
    assert (home / "early" / "train.log").read_text().count("dev at step") == 3


@pytest.mark.parametrize(
    "higher,scores,due",
    [(False, [3, 2, 2, 2], True), (False, [3, 2, 2, 1], False), (True, [1, 2, 1], False), (True, [2, 1, 1], True)],
)
def test_what_counts_as_no_better(higher, scores, due):
    from speechllm.guard import EarlyStop

    history = [{"loss": 1.0}] + [{"eval_WER": score} for score in scores]
    assert EarlyStop(2, higher).due(history) is due
    assert not EarlyStop(0, higher).due(history)
