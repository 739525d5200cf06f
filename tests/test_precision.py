"""bfloat16, recomputed activations, torch.compile: less memory or time, the same training."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from test_trainer import losses, run
from tiny import make_corpus, make_model

from speechllm import checkpoint, cli, parallel
from speechllm.batching import collate
from speechllm.config import RunConfig
from speechllm.formats.jsonl import JsonlFile
from speechllm.models import open_family
from speechllm.tasks import open_task
from speechllm.trainer import Objective

LORA = ["++llm_conf.use_lora=true", "++llm_conf.lora_conf.lora_dropout=0"]
FROZEN = ["++llm_conf.freeze=true", "++audio_encoder_conf.freeze=true"]  # the adaptor alone learns, through the LLM
RECOMPUTED = "++train_conf.gradient_checkpointing=true"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("precision")
    make_model(folder / "model")
    make_corpus(folder / "train", 61)
    make_corpus(folder / "dev", 5, seed=1)
    return folder


@pytest.fixture(scope="module")
def family(home):
    return open_family("fun_asr_nano", str(home / "model"))


def prepared(family, *words):
    """A model in training, and a batch of four utterances of different lengths, one row of them silent at the end."""
    config = cli.parse(RunConfig, list(words))
    torch.manual_seed(0)
    model, task = family.load(), open_task("sft", family)
    objective = Objective(family, task, model, checkpoint.set_trainable(family, model, config))
    parallel.prepare_layers(family, model, config)
    return objective.train()


def batch(family, home, count=4):
    from speechllm import audio

    task, rows = open_task("sft", family), JsonlFile(home / "train" / "rows.jsonl")
    made = [task.example(family, rows[i], audio.read(rows[i].clip, family.rate), None) for i in range(count)]
    joined = collate(made, family.fields(generating=False))
    return joined, task.counts(joined)


def passes(objective, given):
    """The loss and the gradients of one step."""
    loss = objective(*copy.deepcopy(given))
    loss.backward()
    return loss.item(), {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}


def largest(some, others):
    assert set(some) == set(others) and some
    return max((some[name] - others[name]).abs().max().item() for name in some)


@pytest.mark.parametrize("words", [[], LORA, FROZEN], ids=["full", "lora", "adaptor"])
def test_recomputed_activations_change_nothing_but_the_number_of_passes(family, home, words):
    given = batch(family, home)
    plain, gradients = passes(prepared(family, *words), given)
    objective, calls = prepared(family, *words, RECOMPUTED), []
    found = parallel.layers(objective)
    assert len(found) == 3 + 1 + 2  # of encoder, adaptor and LLM, as the tiny model has them
    for layer in found:
        layer.self_attn.register_forward_pre_hook(lambda *_, layer=layer: calls.append(id(layer)))
    loss, others = passes(objective, given)
    assert abs(loss - plain) < 1e-6 and largest(gradients, others) < 1e-6
    through = found[3:] if words is FROZEN else found  # no gradient goes through the frozen encoder
    assert all(calls.count(id(layer)) == 2 for layer in through)


def test_a_part_without_transformer_layers_is_named(family, home, caplog):
    class Projector(torch.nn.Linear):
        pass

    class Other(type(family)):
        def parts(self, model):
            return super().parts(model) | {"projector": (Projector(2, 2),)}

    config = cli.parse(RunConfig, [RECOMPUTED])
    parallel.prepare_layers(Other(family.folder), family.load(), config)
    assert "projector has no transformer layers" in caplog.text and "llm has" not in caplog.text


def test_dtype_auto_is_bfloat16_where_a_gpu_computes_in_it(monkeypatch):
    def chosen(*words):
        return parallel.use_bfloat16(cli.parse(RunConfig, list(words)))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not chosen() and chosen("++train_conf.dtype=bfloat16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert not chosen()  # an older GPU emulates it
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert chosen() and not chosen("++train_conf.dtype=float32")


def test_bfloat16_stays_close_and_keeps_weights_in_float32(home):
    for out in ("float32", "bfloat16"):
        done = run(home, out, f"++train_conf.dtype={out}")
        assert done.returncode == 0, done.stderr
    whole, half = losses(home, "float32"), losses(home, "bfloat16")
    off = max(abs(a - b) for (_, a), (_, b) in zip(half, whole, strict=True))
    assert 1e-5 < off < 0.02 and half[-1][1] < half[0][1] - 1
    newest = checkpoint.checkpoints(str(home / "bfloat16"))[-1]
    for path in (home / "bfloat16" / "model.safetensors", f"{newest}/trained.safetensors"):
        assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float32}


@pytest.mark.parametrize("words", [[], [*LORA, RECOMPUTED]], ids=["full", "lora-recomputed"])
def test_a_compiled_llm_trains_the_same_under_the_same_names(family, home, monkeypatch, words):
    from torch._dynamo.utils import counters

    compiling = torch.compile
    # Everything but the generation of C++, which takes half a minute.
    monkeypatch.setattr(torch, "compile", lambda *args, **named: compiling(*args, **named, backend="aot_eager"))
    torch._dynamo.reset()
    counters.clear()
    objective, plain = prepared(family, *words, "++train_conf.compile=true"), prepared(family, *words)
    assert list(objective.state_dict()) == list(plain.state_dict())
    for count in (4, 3, 5):  # shapes differ
        given = batch(family, home, count)
        (loss, gradients), (expected, others) = passes(objective, given), passes(plain, given)
        assert abs(loss - expected) < 1e-4 and largest(gradients, others) < 1e-4
    assert 0 < counters["stats"]["unique_graphs"] < 6
    made = counters["stats"]["unique_graphs"]
    with torch.inference_mode():
        objective.eval()(*batch(family, home, 2))
    assert counters["stats"]["unique_graphs"] == made  # decoding is not compiled
