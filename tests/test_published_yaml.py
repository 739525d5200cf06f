"""The YAML that is published for fine-tuning Qwen3-ForcedAligner: it runs, and each of its keys does what it says."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from safetensors.torch import load_file
from tiny import WORDS

from speechllm import checkpoint, cli, upstream
from speechllm.config import RunConfig
from speechllm.errors import UserError
from speechllm.upstream import forced_aligner

ROOT = Path(__file__).resolve().parents[1]
# Its keys and values, in its order.
PUBLISHED = """
model_name_or_path: "Qwen/Qwen3-ForcedAligner-0.6B"
dataset_name: "./data/train_with_pseudo_labels.jsonl" # rows
output_dir: "./output/medical_finetuned"
num_train_epochs: 5
per_device_train_batch_size: 4
gradient_accumulation_steps: 2
learning_rate: 1e-4
warmup_steps: 100
logging_steps: 10
save_steps: 200
eval_steps: 200
save_total_limit: 2
load_best_model_at_end: true
metric_for_best_model: "loss"
greater_is_better: false
use_peft: true
peft_config:
  r: 8
  lora_alpha: 32
  lora_dropout: 0.1
  target_modules: ["q_proj", "k_proj", "v_proj", "o_proj"]
audio_sample_rate: 16000
max_audio_length: 300
text_tokenizer: "Qwen/Qwen3-ForcedAligner-0.6B"
"""
TREE = yaml.safe_load(PUBLISHED)
AUDIO = {"num_mel_bins": 40, "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
LLM = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8}
SIZES = {
    "num_labels": 250,
    "audio_config": AUDIO | {"downsample_hidden_size": 8, "output_dim": 16},
    "text_config": LLM | {"num_key_value_heads": 1, "max_position_embeddings": 512, "tie_word_embeddings": True},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A random aligner in ``model``, and ``rows.jsonl``: 21 utterances of words that are tones."""
    from transformers import set_seed

    from speechllm.models.qwen3_forced_aligner import Qwen3ForcedAligner
    from speechllm.models.tiny import train_tokenizer

    folder, draw = tmp_path_factory.mktemp("published"), np.random.default_rng(0)
    set_seed(7)
    tokenizer = train_tokenizer(WORDS * 9, 300, Qwen3ForcedAligner.special_tokens)
    Qwen3ForcedAligner.create(SIZES, tokenizer, str(folder / "model"), "hf")
    with open(folder / "rows.jsonl", "w", encoding="utf-8") as file:
        for number in range(21):
            words = draw.integers(0, len(WORDS), 3)
            lengths = draw.integers(2400, 4800, 3)
            ends = (np.cumsum(lengths) / 16000).round(3).tolist()
            pitch = np.repeat(300 * (words + 1), lengths) / 16000
            path = folder / f"{number}.wav"
            soundfile.write(path, 0.3 * np.sin(2 * np.pi * np.cumsum(pitch)), 16000)
            times = [list(pair) for pair in zip([0.0, *ends], ends, strict=False)]
            row = {"audio_path": str(path), "text": " ".join(WORDS[word] for word in words), "timestamps": times}
            file.write(json.dumps(row) + "\n")
    return folder


def parse(*words):
    return cli.parse(RunConfig, upstream.translate(list(words)))


def written(folder, text, name="run.yaml"):
    path = folder / name
    path.write_text(text if isinstance(text, str) else yaml.safe_dump(text), encoding="utf-8")
    return f"--config={path}"


def train(*words):
    command = [sys.executable, str(ROOT / "tools" / "train.py"), *words]
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)


def typographic(text):
    """As the web page shows it."""
    return re.sub('"(.*?)"', "“\\1”", text)


@pytest.mark.parametrize("text", [PUBLISHED, typographic(PUBLISHED)], ids=["straight", "typographic"])
def test_every_key_is_honoured(tmp_path, text):
    run = written(tmp_path, text)
    config = parse(run)
    assert (config.family, config.task) == ("qwen3_forced_aligner", "alignment")
    assert config.model == "Qwen/Qwen3-ForcedAligner-0.6B"
    assert config.train_data_set_list == "./data/train_with_pseudo_labels.jsonl" and config.valid_data_set_list == ""
    assert config.output_dir == "./output/medical_finetuned"
    train, data = config.train_conf, config.dataset_conf
    assert (train.max_epoch, train.accum_grad, train.log_interval, train.keep_nbest_models) == (5, 2, 10, 2)
    assert (train.validate_interval, train.save_checkpoint_interval) == (200, 200)
    assert (data.batch_type, data.batch_size) == ("example", 4)
    assert (config.optim_conf.lr, config.scheduler_conf.warmup) == (1e-4, 100)
    assert config.llm_conf.use_lora and not config.llm_conf.freeze
    lora = config.llm_conf.lora_conf
    assert (lora.r, lora.lora_alpha, lora.lora_dropout) == (8, 32, 0.1)
    assert lora.target_modules == ["q_proj", "k_proj", "v_proj", "o_proj"]
    for part in ("audio_encoder", "audio_adaptor", "head"):
        assert config.part(part).freeze and not config.part(part).use_lora
    told = dict(line.split("=", 1) for line in upstream.notes([run]))
    assert set(told) == {key for key, _ in upstream._leaves(TREE, "")} - {"output_dir"} == set(forced_aligner.OPTIONS)
    assert "AAS" in told["metric_for_best_model"] and told["learning_rate"] == "1e-4: optim_conf.lr=1e-4"
    assert told["model_name_or_path"].endswith("unless set otherwise, family=qwen3_forced_aligner task=alignment")


@pytest.mark.parametrize(
    "change,mend",
    [
        ({"audio_sample_rate": 8000}, "16,000 samples per second"),
        ({"max_audio_length": 30}, "no row is left out for its length"),
        ({"text_tokenizer": "Qwen/Qwen3-0.6B"}, "in the model's folder; leave the option out"),
        ({"metric_for_best_model": "accuracy"}, "AAS"),
        ({"greater_is_better": True}, "less is better"),
        ({"load_best_model_at_end": False}, "checkpoint-N can be used"),
        ({"use_peft": "maybe"}, "true or false"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(tmp_path, change, mend):
    (key,) = change
    with pytest.raises(UserError) as caught:
        parse(written(tmp_path, TREE | change))
    said = str(caught.value)
    assert (
        re.match(rf".*run\.yaml: {key}=\S+ is an option of the published YAML of Qwen3-Forced", said) and mend in said
    )


def test_a_key_that_it_does_not_have_is_unknown(tmp_path):
    with pytest.raises(UserError, match=r"unknown option lr_scheduler_typ\b"):
        parse(written(tmp_path, TREE | {"lr_scheduler_typ": "linear"}))
    with pytest.raises(UserError, match=r"unknown option peft_config\.bias"):
        parse(written(tmp_path, TREE | {"peft_config": {"bias": "all"}}))


def test_ours_beside_it_win(tmp_path):
    other = {"family": "fun_asr_nano", "task": "sft", "valid_data_set_list": "dev.jsonl"}
    config = parse(written(tmp_path, other | TREE))
    assert (config.family, config.task, config.valid_data_set_list) == ("fun_asr_nano", "sft", "dev.jsonl")
    config = parse(written(tmp_path, TREE), "++model=mine", "++optim_conf.lr=3e-5", "++head_conf.freeze=false")
    assert (config.model, config.optim_conf.lr, config.head_conf.freeze) == ("mine", 3e-5, False)


def test_without_lora_all_is_trained(tmp_path):
    for config in (
        parse(written(tmp_path, TREE | {"use_peft": False})),
        parse(written(tmp_path, TREE), "++use_peft=false"),
    ):
        assert not config.llm_conf.use_lora and not any(config.part(part).freeze for part in checkpoint.PARTS)
    with pytest.raises(UserError, match=r"peft_config\.\w+ is set, and use_peft is not; add use_peft: true"):
        parse(written(tmp_path, {key: value for key, value in TREE.items() if key != "use_peft"}))


def test_the_tokenizer_may_be_named_as_the_model_is(tmp_path):
    own = {"model_name_or_path": "./here/Mine", "text_tokenizer": "./here/Mine"}
    assert parse(written(tmp_path, TREE | own)).model == "./here/Mine"
    with pytest.raises(UserError, match=r"text_tokenizer=\./other"):
        parse(written(tmp_path, TREE | own | {"text_tokenizer": "./other"}))


def test_its_q_proj_is_that_of_the_llm_alone(home, tmp_path):
    from speechllm.models import open_family

    family = open_family("qwen3_forced_aligner", str(home / "model"))
    model = family.load()
    (encoder,) = family.parts(model)["audio_encoder"]
    assert any(name.endswith("q_proj") for name, _ in encoder.named_modules())  # a bare name would reach it
    checkpoint.set_trainable(family, model, parse(written(tmp_path, PUBLISHED)))
    kinds = ("q_proj", "k_proj", "v_proj", "o_proj")
    layers = {f"model.language_model.layers.{layer}.self_attn.{kind}" for layer in range(2) for kind in kinds}
    trained = {name: tuple(tensor.shape) for name, tensor in checkpoint.trained_tensors(model).items()}
    assert set(trained) == {f"{layer}.lora_{side}.default.weight" for layer in layers for side in "AB"}
    assert all(8 in shape for shape in trained.values())  # r


def test_it_runs_as_published(home):
    text = typographic(PUBLISHED).replace("“Qwen/Qwen3-ForcedAligner-0.6B”", f"“{home}/model”", 1)
    text = text.replace("./data/train_with_pseudo_labels.jsonl", f"{home}/rows.jsonl").replace(
        "./output", f"{home}/out"
    )
    done = train(written(home, text))
    assert done.returncode == 0, done.stderr
    out = home / "out" / "medical_finetuned"
    log = (out / "train.log").read_text()
    assert "1 of the 21 rows" in log and "train: 20 utterances" in log and "dev: 1 utterances" in log
    assert "the learning rate rises in 100 steps, and the run has 15" in log  # 20 rows, 2 x 4 in a step, 5 epochs
    state = json.loads((out / "checkpoint-15" / "trainer_state.json").read_text())
    rates = [row["learning_rate"] for row in state["log_history"] if "learning_rate" in row]
    assert rates == pytest.approx([9e-6])  # in the tenth step, after 9 of 100 of the way to 1e-4
    assert log.count("dev at step") == 5 and "dev at step 3: aas" in log
    before, after = (load_file(folder / "model.safetensors") for folder in (home / "model", out))
    changed = {name for name, tensor in after.items() if not tensor.equal(before[name])}
    assert changed and all(re.search(r"language_model.*\.[qkvo]_proj\.weight$", name) for name in changed)
    assert json.loads((out / "speechllm.json").read_text())["task"] == "alignment"


@pytest.mark.parametrize("name", ["align_lora", "align_lora_encoder", "align_frozen_encoder", "align_full"])
def test_the_shipped_yamls_train_what_their_names_say(home, name):
    from speechllm.models import open_family

    family = open_family("qwen3_forced_aligner", str(home / "model"))
    model = family.load()
    config = parse(f"--config={ROOT}/conf/{name}.yaml")
    assert (config.family, config.task) == ("qwen3_forced_aligner", "alignment")
    checkpoint.set_trainable(family, model, config)
    trained = {
        part: {"lora" if "lora_" in n else "whole" for m in modules for n, p in m.named_parameters() if p.requires_grad}
        for part, modules in family.parts(model).items()
    }
    lora, whole, frozen = {"lora"}, {"whole"}, set()
    encoder, adaptor, llm, head = {
        "align_lora": (frozen, frozen, lora, frozen),
        "align_lora_encoder": (lora, frozen, lora, frozen),
        "align_frozen_encoder": (frozen, frozen, whole, whole),
        "align_full": (whole, whole, whole, whole),
    }[name]
    assert trained == {"audio_encoder": encoder, "audio_adaptor": adaptor, "llm": llm, "head": head}
