"""Training over several processes: DDP is in test_trainer.py; here weights, gradients and optimiser are sharded."""

import importlib.util
import json
import os
import shutil
import subprocess

import pytest
import torch
from safetensors.torch import load_file
from test_trainer import LORA, ROOT, command, losses, run
from tiny import make_corpus, make_model

from speechllm import checkpoint, cli, parallel
from speechllm.config import RunConfig
from speechllm.errors import UserError

OFTEN = "++train_conf.validate_interval=7"
# No loader's process: CPython 3.11 may hang in a fork while a thread of gloo lets go of Python objects.
FSDP = ["++dataset_conf.num_workers=0", "++train_conf.use_fsdp=true", OFTEN]
# tools/train.py that notes, at every checkpoint, how each rank holds the parameters. argv[1]: the folder of the notes.
WITNESS = """
import json, os, runpy, sys
notes = sys.argv.pop(1)
sys.path.insert(0, {root!r})
from torch.distributed.tensor import DTensor
from speechllm.trainer import SpeechTrainer
plain = SpeechTrainer._save
def save(self, *words, **named):
    held = list(self.objective.parameters())
    note = [all(isinstance(p, DTensor) for p in held), sum(p.to_local().numel() for p in held)]
    with open(os.path.join(notes, os.environ["RANK"] + ".json"), "w") as file:
        json.dump(note, file)
    plain(self, *words, **named)
SpeechTrainer._save = save
runpy.run_path({train!r}, run_name="__main__")
"""
# tools/train.py on a machine without GPU, where accelerate knows no DeepSpeed: made to believe, over gloo.
DEEPSPEED = """
import os, runpy, sys
os.environ |= dict(DS_ACCELERATOR="cpu", ACCELERATE_TORCH_DEVICE="cpu")
import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
torch.accelerator.is_available = lambda: True
PartialState._prepare_backend = lambda *words: ("gloo", DistributedType.MULTI_GPU)
runpy.run_path({train!r}, run_name="__main__")
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel")
    make_model(folder / "model")
    make_corpus(folder / "train", 61)
    make_corpus(folder / "dev", 5, seed=1)  # one batch: the second rank decodes nothing
    for name, body in {"witness": WITNESS, "zero": DEEPSPEED}.items():
        (folder / f"{name}.py").write_text(body.format(root=str(ROOT), train=str(ROOT / "tools" / "train.py")))
    return folder


def run_script(home, script, out, *words, before=()):
    """A run of two ranks through another script than tools/train.py."""
    told = command(home, out, "++dataset_conf.batch_size=200", *words, ranks=2)
    at = told.index(str(ROOT / "tools" / "train.py"))
    told[at : at + 1] = [str(home / script), *before]
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(told, env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def alone(home):
    """The runs in one process that the others are compared with."""
    for out, words in {"full": [], "lora": LORA}.items():
        done = run(home, out, OFTEN, *words)
        assert done.returncode == 0, done.stderr
    return {out: losses(home, out) for out in ("full", "lora")}


def largest_difference(some, others):
    assert [step for step, _ in some] == [step for step, _ in others] and len(some) > 10
    return max(abs(a - b) for (_, a), (_, b) in zip(some, others, strict=True))


@pytest.fixture(scope="module")
def sharded(home):
    done = run_script(home, "witness.py", "fsdp", *FSDP, before=[str(home)])
    assert done.returncode == 0, done.stderr
    return losses(home, "fsdp")


def test_fsdp_really_shards_and_gives_the_losses_of_one_process(home, alone, sharded):
    assert largest_difference(sharded, alone["full"]) < 1e-5
    notes = [json.loads((home / f"{rank}.json").read_text()) for rank in (0, 1)]
    weights = load_file(home / "full" / "model.safetensors")
    count = sum(tensor.numel() for tensor in weights.values())
    assert all(dtensor for dtensor, _ in notes)
    assert sum(held for _, held in notes) == count and max(held for _, held in notes) < 0.6 * count


def test_a_sharded_run_leaves_what_any_run_leaves(home, alone, sharded):
    ours, theirs = (load_file(home / out / "model.safetensors") for out in ("fsdp", "full"))
    assert set(ours) == set(theirs)
    assert max((ours[name] - theirs[name]).abs().max() for name in ours) < 1e-4
    assert checkpoint.open_model(str(home / "fsdp")).task.name == "sft"
    kept = load_file(checkpoint.checkpoints(str(home / "fsdp"))[0] + "/trained.safetensors")
    assert set(kept) == set(dict(checkpoint.open_model(str(home / "model")).model.named_parameters()))


def test_a_sharded_run_goes_on_exactly(home, sharded):
    shutil.copytree(home / "fsdp", home / "again")
    for step in (14, 21, 22):
        shutil.rmtree(home / "again" / f"checkpoint-{step}")
    (home / "again" / "speechllm.json").unlink()
    done = run(home, "again", "++dataset_conf.batch_size=200", *FSDP, ranks=2)
    assert done.returncode == 0 and "checkpoint-7" in done.stderr, done.stderr
    assert losses(home, "again") == sharded
    ours, theirs = (load_file(home / out / "model.safetensors") for out in ("again", "fsdp"))
    assert all(tensor.equal(theirs[name]) for name, tensor in ours.items())


def test_fsdp_with_lora_frozen_parts_and_accumulation(home, alone):
    words = [*LORA, *FSDP, "++train_conf.accum_grad=2", "++dataset_conf.batch_size=100"]
    done = run_script(home, "witness.py", "fsdp-lora", *words, before=[str(home)])
    assert done.returncode == 0, done.stderr
    assert largest_difference(losses(home, "fsdp-lora"), alone["lora"]) < 1e-5
    assert json.loads((home / "0.json").read_text())[0]


def test_fsdp_in_bfloat16_with_recomputed_activations(home, alone):
    words = ["++train_conf.dtype=bfloat16", "++train_conf.gradient_checkpointing=true"]
    done = run_script(home, "witness.py", "fsdp-bf16", *FSDP, *words, before=[str(home)])
    assert done.returncode == 0, done.stderr
    assert 1e-5 < largest_difference(losses(home, "fsdp-bf16"), alone["full"]) < 0.02
    kept = load_file(home / "fsdp-bf16" / "checkpoint-22" / "trained.safetensors")
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}


def test_a_sharded_run_that_was_stopped_early_and_killed_is_finished(home, sharded):
    shutil.copytree(home / "fsdp", home / "stopped")
    (home / "stopped" / "speechllm.json").unlink()
    words = [*FSDP, "++dataset_conf.batch_size=200", "++train_conf.early_stop=1", "++train_conf.avg_nbest_model=2"]
    done = run(home, "stopped", *words, ranks=2)  # nothing is trained any more, but the mean is decoded
    assert done.returncode == 0 and "mean of the 2 best" in done.stderr, done.stderr
    assert (home / "stopped" / "speechllm.json").exists()


# ---- DeepSpeed


@pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="the extra deepspeed is not installed")
@pytest.mark.parametrize("stage,kind,accumulation", [(1, "full", 1), (2, "lora", 2)])
def test_deepspeed_gives_the_losses_of_one_process_and_goes_on_exactly(home, alone, stage, kind, accumulation):
    out = f"zero{stage}"
    words = [
        *(LORA if kind == "lora" else []),
        "++train_conf.use_deepspeed=true",
        f"++train_conf.deepspeed_config={ROOT}/conf/ds_stage{stage}.json",
        OFTEN,
        f"++train_conf.accum_grad={accumulation}",
        f"++dataset_conf.batch_size={200 // accumulation}",
    ]
    done = run_script(home, "zero.py", out, *words)
    assert done.returncode == 0, done.stderr
    straight, weights = losses(home, out), load_file(home / out / "model.safetensors")
    assert largest_difference(straight, alone[kind]) < 1e-5
    for step in (14, 21, 22):
        shutil.rmtree(home / out / f"checkpoint-{step}")
    (home / out / "speechllm.json").unlink()
    done = run_script(home, "zero.py", out, *words)
    assert done.returncode == 0 and "checkpoint-7" in done.stderr, done.stderr
    assert losses(home, out) == straight
    assert all(tensor.equal(weights[name]) for name, tensor in load_file(home / out / "model.safetensors").items())


def deepspeed_of(*words):
    return parallel.deepspeed_config(cli.parse(RunConfig, ["++train_conf.use_deepspeed=true", *words]))


def test_without_deepspeed_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install '\.\[deepspeed\]'"):
        deepspeed_of()


@pytest.fixture
def ready(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "0")


def test_deepspeed_needs_torchrun(ready, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK")
    with pytest.raises(UserError, match="torchrun"):
        deepspeed_of()


@pytest.mark.parametrize("stage", [1, 2])
def test_the_shipped_files_fit_deepspeed(ready, stage):
    words = [f"++train_conf.deepspeed_config={ROOT}/conf/ds_stage{stage}.json", "++train_conf.dtype=bfloat16"]
    config = deepspeed_of(*words)
    assert config["zero_optimization"]["stage"] == stage and config["train_batch_size"] == "auto"
    assert config["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}


@pytest.mark.parametrize(
    "body,said",
    [
        ('{"train_batch_size": 16, "bf16": {"enabled": true}}', "train_batch_size, bf16: the run's own config"),
        ('{"zero_optimization": {"stage": 3}}', "stage 3 is not supported.*use_fsdp"),
        ("{", "give a JSON of DeepSpeed"),
    ],
)
def test_a_file_that_decides_what_is_not_its_own_is_refused(ready, tmp_path, body, said):
    (tmp_path / "ds.json").write_text(body)
    with pytest.raises(UserError, match=said):
        deepspeed_of(f"++train_conf.deepspeed_config={tmp_path}/ds.json")


def test_fsdp_and_deepspeed_together_are_refused(ready):
    with pytest.raises(UserError, match=r"use_fsdp and train_conf.use_deepspeed"):
        deepspeed_of("++train_conf.use_fsdp=true")
