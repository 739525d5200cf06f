"""Freezing, LoRA, and what is kept of a run."""

import json

import numpy as np
import pytest
import torch
from tiny import make_model

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
