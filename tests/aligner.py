"""Tiny random forced aligners for the tests. Their times mean nothing."""

import json
from pathlib import Path

import numpy as np

from speechllm.batching import collate

SIZES = {
    "num_labels": 250,
    "initializer_range": 0.3,
    "audio_config": {
        "num_mel_bins": 80,
        "d_model": 32,
        "encoder_layers": 2,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "downsample_hidden_size": 8,
        "output_dim": 32,
        "initializer_range": 0.15,
    },
    "text_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "initializer_range": 0.3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
}
RATE = 16000
TEXTS = ("turn on the light", "北京欢迎你 hello", "it's ten past", "关灯", "naïve Ærø 42", "一 two 三")
SECONDS = (0.31, 9.7, 2.04, 0.48, 17.3, 1.0)  # below the 0.5 s that are filled up, beyond the encoder's windows of 8 s


def make_aligner(folder: Path, format="hf", **sizes) -> Path:
    """A random aligner whose classes vary with what it hears."""
    import torch

    from speechllm.models.qwen3_forced_aligner import Qwen3ForcedAligner
    from speechllm.models.tiny import train_tokenizer

    torch.manual_seed(5)
    tokenizer = train_tokenizer([*TEXTS] * 9, 400, Qwen3ForcedAligner.special_tokens)
    Qwen3ForcedAligner.create(SIZES | sizes, tokenizer, str(folder), format)
    return folder


def as_published(folder: Path) -> Path:
    """Give an original checkpoint the files that the hub's has: a slow tokenizer's, and a type of half the width."""
    import torch
    from safetensors.torch import load_file, save_file

    words = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(words["model"]["vocab"], ensure_ascii=False))
    merges = "".join(f"{a} {b}\n" for a, b in words["model"]["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}")
    path = folder / "tokenizer_config.json"
    said = {key: value for key, value in json.loads(path.read_text()).items() if key.endswith("_token")}
    added = {str(token.pop("id")): token for token in words["added_tokens"]}
    said |= {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added}
    path.write_text(json.dumps(said))
    (folder / "generation_config.json").write_text('{"do_sample": false}')
    (folder / "chat_template.json").write_text('{"chat_template": "{{ messages }}"}')
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | {"support_languages": ["Chinese"], "dtype": "bfloat16"}))
    state = load_file(folder / "model.safetensors")
    save_file({name: tensor.to(torch.bfloat16) for name, tensor in state.items()}, folder / "model.safetensors")
    return folder


def wave(seconds, seed=0):
    draw = np.random.default_rng(seed)
    times = np.arange(int(seconds * RATE)) / RATE
    tone = np.sin(2 * np.pi * np.cumsum(300 + 200 * np.sin(2 * np.pi * 1.3 * times)) / RATE)
    return (0.2 * tone * np.sin(2 * np.pi * 2.1 * times) + 0.02 * draw.standard_normal(len(times))).astype(np.float32)


def utterances(count):
    """Of each the samples and the text."""
    for i in range(count):
        yield wave(SECONDS[i % len(SECONDS)] + 0.13 * (i // len(SECONDS)), i), TEXTS[(i + i // 6) % len(TEXTS)]


def batch_of(family, pairs):
    return collate([family.encode(wave, family.split(text, "")) for wave, text in pairs], family.fields(True))


def logits(family, model, pairs):
    """(S, K), each utterance by itself."""
    import torch

    with torch.inference_mode():
        return torch.cat([family.slot_logits(model, batch_of(family, [pair])) for pair in pairs])
