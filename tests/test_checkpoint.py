"""Freezing, LoRA, and what is kept of a run, also when the disk is full."""

import errno
import json
import os
import resource
import subprocess
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_trainer import command, run
from tiny import make_corpus, make_model

from speechllm import checkpoint, cli
from speechllm.config import RunConfig
from speechllm.errors import UserError
from speechllm.models import open_family
from speechllm.sample import Prompt
from speechllm.tasks import open_task
from speechllm.trainer import Objective


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return open_family("fun_asr_nano", str(make_model(tmp_path_factory.mktemp("model"), dropout=0.5)))


def config(*words):
    return cli.parse(RunConfig, list(words))


def prepared(family, *words):
    model = family.load()
    return model, checkpoint.set_trainable(family, model, config(*words))


def by_part(family, model):
    return {
        name: {p.requires_grad for module in modules for p in module.parameters()}
        for name, modules in family.parts(model).items()
    }


def test_freeze_flags(family):
    model, frozen = prepared(family, "++audio_encoder_conf.freeze=true", "++llm_conf.freeze=true")
    assert by_part(family, model) == {"audio_encoder": {False}, "audio_adaptor": {True}, "llm": {False}}
    parts = family.parts(model)
    assert frozen == [*parts["audio_encoder"], *parts["llm"]]


def test_a_frozen_part_keeps_evaluation_mode_although_trainer_calls_train(family):
    model, frozen = prepared(family, "++audio_encoder_conf.freeze=true")
    objective = Objective(family, open_task("sft", family), model, frozen)
    objective.train()
    assert not model.model.audio_tower.training and model.model.language_model.training
    with torch.no_grad():
        given = {"input_features": torch.randn(1, 9, 560), "input_features_mask": torch.ones(1, 9, dtype=torch.long)}
        once, twice = (model.model.audio_tower(**given).last_hidden_state for _ in range(2))
    assert torch.equal(once, twice)  # dropout of 0.5 would differ


def test_the_parts_are_the_whole_model(family):
    model = family.load()
    held = {id(p) for modules in family.parts(model).values() for module in modules for p in module.parameters()}
    assert held == {id(p) for p in model.parameters()}


def test_everything_frozen_is_refused(family):
    words = [f"++{part}_conf.freeze=true" for part in ("audio_encoder", "audio_adaptor", "llm")]
    with pytest.raises(UserError, match=r"nothing is left to train.*audio_encoder_conf.freeze"):
        prepared(family, *words)


def test_lora_stays_inside_its_part(family):
    model, frozen = prepared(
        family,
        "++audio_encoder_conf.freeze=true",
        "++llm_conf.use_lora=true",
        "++llm_conf.lora_conf.target_modules=[q_proj]",
    )
    trained = set(checkpoint.trained_tensors(model))
    lora = {name for name in trained if "lora_" in name}
    assert lora == {
        f"model.language_model.layers.{i}.self_attn.q_proj.lora_{ab}.default.weight" for i in (0, 1) for ab in "AB"
    }
    assert trained - lora == {
        f"model.multi_modal_projector.{n}" for n, _ in model.model.multi_modal_projector.named_parameters()
    }
    assert frozen == [model.model.audio_tower]


def test_lora_on_every_linear_layer_of_encoder_and_adaptor(family):
    model, _ = prepared(family, "++audio_encoder_conf.use_lora=true", "++audio_adaptor_conf.use_lora=true")
    names = {name.split(".lora_A")[0] for name in checkpoint.trained_tensors(model) if "lora_A" in name}
    plain = family.load()
    expected = {
        f"model.{part}.{name}"
        for part in ("audio_tower", "multi_modal_projector")
        for name, layer in getattr(plain.model, part).named_modules()
        if isinstance(layer, torch.nn.Linear)
    }
    assert names == expected


def test_lora_targets_that_do_not_exist_are_refused_with_those_that_do(family):
    with pytest.raises(UserError, match=r"llm_conf.*\['nope'\].*q_proj"):
        prepared(family, "++llm_conf.use_lora=true", "++llm_conf.lora_conf.target_modules=[nope]")


def logits(family, model):
    row = family.encode(np.sin(np.arange(9000, dtype=np.float32)), Prompt(), "one", None)
    with torch.no_grad():
        return model.eval()(**{name: tensor[None] for name, tensor in row.items() if name != "labels"}).logits


def randomised(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in checkpoint.trained_tensors(model).values():
            tensor.add_(0.05 * torch.randn_like(tensor))
    return model


def test_merged_lora_gives_the_same_logits_and_no_trace(family):
    model, _ = prepared(family, "++llm_conf.use_lora=true", "++audio_encoder_conf.use_lora=true")
    before = logits(family, model)
    changed = logits(family, randomised(model))
    checkpoint.merge_lora(model)
    assert (changed - before).abs().max() > 0.01  # the updates did something
    assert torch.allclose(logits(family, model), changed, atol=1e-4)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in family.load().named_parameters()]


def test_a_finished_run_opens_by_its_folder_alone(family, tmp_path):
    model, _ = prepared(family, "++llm_conf.use_lora=true")
    expected = logits(family, randomised(model))
    asked = Prompt("S", "语音转写成英文：", "")
    checkpoint.save_model(family, open_task("sft", family), model, asked, 33, str(tmp_path))
    opened = checkpoint.open_model(str(tmp_path))
    assert (opened.family.name, opened.task.name, opened.prompt, opened.max_new_tokens) == (
        "fun_asr_nano",
        "sft",
        asked,
        33,
    )
    assert torch.allclose(logits(opened.family, opened.model), expected, atol=1e-4)


def test_trained_tensors_come_back_and_average(family, tmp_path):
    folders = []
    for i in range(2):
        model, _ = prepared(family, "++audio_encoder_conf.freeze=true")
        with torch.no_grad():
            for tensor in checkpoint.trained_tensors(model).values():
                tensor.fill_(i)
        (tmp_path / str(i)).mkdir()
        folders.append(str(tmp_path / str(i)))
        checkpoint.save_trained(model, folders[i])
    model, _ = prepared(family, "++audio_encoder_conf.freeze=true")
    encoder = model.model.audio_tower.layers[0].mlp.fc1.weight.clone()
    checkpoint.load_trained(model, folders)
    assert all(tensor.eq(0.5).all() for tensor in checkpoint.trained_tensors(model).values())
    assert torch.equal(model.model.audio_tower.layers[0].mlp.fc1.weight, encoder)


def test_tensors_of_another_setting_are_refused(family, tmp_path):
    model, _ = prepared(family)
    checkpoint.save_trained(model, str(tmp_path))
    other, _ = prepared(family, "++llm_conf.freeze=true")
    with pytest.raises(UserError, match="other freeze flags, LoRA or model"):
        checkpoint.load_trained(other, [str(tmp_path)])


def test_checkpoints_are_ranked_by_score_and_by_age(tmp_path):
    for step, value in {2: 5.0, 10: 3.0, 30: 3.0, 9: 9.0}.items():
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "score.json").write_text(json.dumps({"value": value}))
    (tmp_path / "checkpoint-40").mkdir()  # saved for resuming only
    names = [path.rsplit("-", 1)[1] for path in checkpoint.checkpoints(str(tmp_path))]
    assert names == ["2", "9", "10", "30", "40"]
    best = [path.rsplit("-", 1)[1] for path in checkpoint.ranked(str(tmp_path), higher_is_better=False)]
    assert best == ["10", "30", "2", "9"]


def test_an_unfinished_run_is_refused(tmp_path):
    (tmp_path / "checkpoint-4").mkdir()
    with pytest.raises(UserError, match="not finished"):
        checkpoint.open_model(str(tmp_path))


def test_a_model_is_built_anew_from_its_checkpoints(family, tmp_path):
    words = ["++llm_conf.use_lora=true", "++audio_encoder_conf.freeze=true"]
    model, _ = prepared(family, *words)
    expected = logits(family, randomised(model))
    checkpoint.save_trained(model, str(tmp_path))
    assert torch.equal(logits(family, checkpoint.rebuild(family, config(*words), [str(tmp_path)])), expected)


# ---- a full disk


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("disk")
    make_model(folder / "model")
    make_corpus(folder / "train", 61)
    make_corpus(folder / "dev", 5, seed=1)
    done = run(folder, "straight", *OFTEN)
    assert done.returncode == 0, done.stderr
    return folder


OFTEN = ["++train_conf.save_checkpoint_interval=3", "++train_conf.max_epoch=4"]


# A checkpoint has 280 kB of weights and 560 kB of the optimiser's state: the first or the second does not fit.
@pytest.mark.parametrize("limit", [100_000, 400_000])
def test_a_disk_that_fills_up_leaves_the_last_good_checkpoint(home, limit):
    out = home / f"limit-{limit}"
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    started = subprocess.Popen(command(home, out.name, *OFTEN), env=env, stderr=subprocess.PIPE, text=True)
    while not (out / "checkpoint-3").is_dir() and started.poll() is None:
        time.sleep(0.02)
    resource.prlimit(started.pid, resource.RLIMIT_FSIZE, (limit, limit))
    last = started.communicate(timeout=120)[1].strip().splitlines()[-1]
    assert started.returncode == 1 and last.startswith(f"error: {out}: cannot be written")
    assert not [name for name in os.listdir(out) if name.startswith("saving")]
    for path in checkpoint.checkpoints(str(out)):
        assert {"trained.safetensors", "optimizer.pt", "trainer_state.json"} <= set(os.listdir(path))
    done = run(home, out.name, *OFTEN)
    assert done.returncode == 0 and "going on from" in done.stderr
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (out, home / "straight"))
    assert all(tensor.equal(theirs[name]) for name, tensor in ours.items())


def test_a_disk_that_is_full_at_the_end_leaves_no_half_model(family, tmp_path, monkeypatch):
    def fill(model, folder, format):
        with open(os.path.join(folder, "model.safetensors"), "wb") as file:
            file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(family, "save", fill)
    model, _ = prepared(family)
    with pytest.raises(UserError, match=r"cannot be written.*No space left on device.*same command goes on"):
        checkpoint.save_model(family, open_task("sft", family), model, Prompt(), 9, str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_what_is_no_fault_of_the_disk_is_not_said_to_be(tmp_path):
    with pytest.raises(RuntimeError, match="shape"), checkpoint.saving(str(tmp_path / "saving")):
        raise RuntimeError("shape")
