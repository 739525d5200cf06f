"""QLoRA: a part held in 4 bits, LoRA beside it, and a plain model at the end."""

import importlib.util

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file
from test_trainer import losses, run

from speechllm import checkpoint, cli, qlora
from speechllm.config import RunConfig
from speechllm.errors import UserError
from speechllm.models import open_family
from speechllm.sample import Prompt

needs_bitsandbytes = pytest.mark.skipif(
    not importlib.util.find_spec("bitsandbytes"), reason="the extra qlora is not installed"
)
WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32}
QLORA = ["++llm_conf.use_lora=true", "++llm_conf.load_in_4bit=true", "++llm_conf.lora_conf.lora_dropout=0"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qlora")
    with pytest.MonkeyPatch.context() as patch:  # layers of whole blocks of 64 weights
        patch.setitem(tiny.SIZES, "text_config", tiny.SIZES["text_config"] | WIDE)
        tiny.make_model(folder / "model")
    tiny.make_corpus(folder / "train", 61)
    tiny.make_corpus(folder / "dev", 5, seed=1)
    return folder


@pytest.fixture(scope="module")
def family(home):
    return open_family("fun_asr_nano", str(home / "model"))


@needs_bitsandbytes
def test_narrow_layers_stay_as_they_are_and_the_log_says_so(tmp_path, caplog):
    caplog.set_level("INFO")
    family = open_family("fun_asr_nano", str(tiny.make_model(tmp_path / "narrow")))  # 32 wide, the feed-forward 64
    model = prepared(family, *QLORA)
    assert sum(p.dtype == torch.uint8 for p in model.parameters()) == 2
    assert "llm: 2 of 14 linear layers are held in 4 bits" in caplog.text


def prepared(family, *words):
    model = family.load()
    checkpoint.set_trainable(family, model, cli.parse(RunConfig, list(words)))
    return model


def logits(family, model):
    row = family.encode(np.sin(np.arange(9000, dtype=np.float32)), Prompt(), "one", None)
    with torch.no_grad():
        return model.eval()(**{name: tensor[None] for name, tensor in row.items() if name != "labels"}).logits


def test_without_bitsandbytes_one_line_says_how_to_install_it(family, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"llm_conf.load_in_4bit needs bitsandbytes: pip install '\.\[qlora\]'"):
        prepared(family, *QLORA)


@pytest.mark.parametrize(
    "words,said",
    [
        (["++llm_conf.load_in_4bit=true"], "set llm_conf.use_lora too"),
        ([*QLORA, "++train_conf.use_fsdp=true"], "not possible with train_conf.use_fsdp"),
    ],
)
def test_what_does_not_go_with_4_bits_is_refused(family, words, said):
    with pytest.raises(UserError, match=said):
        prepared(family, *words)


@needs_bitsandbytes
def test_the_linear_layers_of_the_part_alone_are_in_4_bits(family):
    model, plain = prepared(family, *QLORA), family.load()
    held = {name.replace(".base_layer", "") for name, p in model.named_parameters() if p.dtype == torch.uint8}
    layers = plain.model.language_model.named_modules()
    assert held == {f"model.language_model.{n}.weight" for n, m in layers if isinstance(m, torch.nn.Linear)}
    assert {name for name in checkpoint.trained_tensors(model) if "language_model" in name} == {
        f"{name.removesuffix('.weight')}.lora_{ab}.default.weight" for name in held for ab in "AB"
    }
    table = [row.split() for row in checkpoint.parameter_table(family, model).splitlines()]
    lora = sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)
    whole = sum(p.numel() for p in plain.model.language_model.parameters())
    assert table[-1][:3] == ["llm", f"{whole + lora:,}", f"{lora:,}"]  # counted in weights, not in bytes


@needs_bitsandbytes
@pytest.mark.parametrize("targets", ["[]", "[q_proj]"])  # all layers with LoRA, or most without
def test_merging_gives_a_plain_model_that_computes_what_the_quantised_one_did(family, targets):
    model = prepared(family, *QLORA, f"++llm_conf.lora_conf.target_modules={targets}")
    plain = family.load()
    torch.manual_seed(0)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data.normal_(std=0.02)
    before = logits(family, model)
    checkpoint.merge_lora(model)
    assert (before - logits(family, plain)).abs().max() > 0.01
    assert torch.allclose(logits(family, model), before, atol=1e-5)
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in plain.named_parameters()}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@needs_bitsandbytes
def test_the_quantised_weights_are_near_the_originals(family):
    model, plain = prepared(family, *QLORA), family.load()
    checkpoint.merge_lora(model)  # LoRA is still zero
    changed = 0
    for name, p in plain.model.language_model.named_parameters():
        error = (p - model.model.language_model.get_parameter(name)).abs().max()
        # The widest gap between two NF4 levels is 1 - 0.6962 of a block's largest weight (QLoRA, appendix E); the
        # scales, quantised themselves, add a little.
        assert error <= (1 - 0.6962) / 2 * 1.05 * p.abs().max()
        changed += bool(error)
    assert changed == 2 * 7  # two layers: q, k, v, o, gate, up, down


@needs_bitsandbytes
def test_a_layer_keeps_its_bias():
    module = torch.nn.Sequential(torch.nn.Linear(64, 8))
    bias, given = module[0].bias.detach().clone(), torch.randn(3, 64)
    qlora.quantise("part", module)
    plain = qlora.dequantised(module[0])
    assert plain.bias.equal(bias) and torch.allclose(plain(given), module(given), atol=1e-5)


@needs_bitsandbytes
def test_a_run_trains_and_leaves_a_plain_model(home):
    done = run(home, "run", *QLORA, "++audio_encoder_conf.freeze=true")
    assert done.returncode == 0, done.stderr
    said = losses(home, "run")
    assert said[-1][1] < said[0][1]
    newest = checkpoint.checkpoints(str(home / "run"))[-1]
    kept = load_file(f"{newest}/trained.safetensors")
    assert all("lora_" in name or "multi_modal_projector" in name for name in kept)
    opened = checkpoint.open_model(str(home / "run"))
    assert set(dict(opened.model.named_parameters())) == set(dict(opened.family.load().named_parameters()))
    assert "weights of the base in 4 bits" in (home / "run" / "train.log").read_text()
