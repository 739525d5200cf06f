"""Random Fun-ASR-Nano models of any size in memory, and rows of a given length for them.

B rows, T stacked frames of 60 ms, L positions of text and audio, K labels.
"""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np

SECONDS, TOKENS = 10, 40  # of a row
VOCABULARY = 151_936  # words of Qwen3's output layer
# Fun-ASR-Nano-2512: 50 + 20 encoder blocks, 2 adaptor layers, Qwen3-0.6B.
REAL = {
    "audio_config": {
        "hidden_size": 512,
        "num_attention_heads": 4,
        "intermediate_size": 2048,
        "num_hidden_layers": 70,
        "num_timestamp_prediction_layers": 20,
    },
    "adaptor_config": {"num_hidden_layers": 2, "num_attention_heads": 8, "projector_hidden_size": 2048},
    "text_config": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
}
SLIM = {
    "audio_config": {
        "hidden_size": 128,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_timestamp_prediction_layers": 1,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    },
    "adaptor_config": {"num_hidden_layers": 1, "num_attention_heads": 4, "projector_hidden_size": 256},
    "text_config": {
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
    },
}


def random_model(sizes: dict, vocabulary: int, layout: str, device: str = "cpu", seed: int = 0) -> tuple[Any, Any]:
    """A family and a model with random float32 weights, on ``device``; nothing of that size touches the disk.

    Args:
        sizes: what differs from the released model's config: REAL or SLIM.
        layout: ``hf`` (the LLM hears all T frames) or ``funasr`` (the first T/8).
    """
    import torch
    from transformers import FunAsrNanoConfig, FunAsrNanoForConditionalGeneration, set_seed

    family = _family(layout)
    opened = family.config  # of a model that is smaller still; its tokenizer and prompt layout are kept
    width = sizes["text_config"]["hidden_size"]
    text = {"model_type": "qwen3", "vocab_size": vocabulary, "tie_word_embeddings": True}
    family.config = FunAsrNanoConfig(
        audio_config=sizes["audio_config"],
        adaptor_config=sizes["adaptor_config"] | {"hidden_size": width, "intermediate_size": width // 4},
        text_config=sizes["text_config"] | text,
        audio_token_id=opened.audio_token_id,
        tie_word_embeddings=True,
        use_low_frame_rate=opened.use_low_frame_rate,
        do_think=opened.do_think,
        sys_prompt=opened.sys_prompt,
    )
    set_seed(seed)
    with torch.device(device):
        model = FunAsrNanoForConditionalGeneration._from_config(
            family.config, attn_implementation="sdpa", dtype=torch.float32
        )
    return family, model


def _family(layout: str) -> Any:
    """The family on a checkpoint of a few kilobytes, for the sake of its tokenizer."""
    from speechllm.models.fun_asr_nano import FunAsrNano
    from speechllm.models.tiny import train_tokenizer
    from speechllm.sample import Prompt

    least = {
        "audio_config": {
            "hidden_size": 8,
            "num_attention_heads": 2,
            "intermediate_size": 8,
            "num_hidden_layers": 2,
            "num_timestamp_prediction_layers": 1,
        },
        "adaptor_config": {"num_hidden_layers": 1, "num_attention_heads": 2, "projector_hidden_size": 8},
        "text_config": {
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 4,
            "tie_word_embeddings": True,
        },
    }
    prompt = Prompt()
    tokenizer = train_tokenizer(["system user assistant", prompt.system, prompt.before] * 100, 320)
    with tempfile.TemporaryDirectory() as folder:
        FunAsrNano.create(least, tokenizer, folder, layout)
        return FunAsrNano(folder)


def rows(family: Any, count: int, labelled: bool = True, seed: int = 0) -> dict:
    """A batch of rows of 10 s of noise, on the CPU, as the trainer's collator makes it.

    Args:
        labelled: rows to train on, with 40 random tokens and the end mark; else rows to generate from.
    """
    import torch

    from speechllm.batching import collate
    from speechllm.sample import Prompt

    draw = np.random.default_rng(seed)
    words = torch.from_numpy(draw.integers(0, family.config.text_config.vocab_size, (count, TOKENS)))
    words = words.where(words != family.config.audio_token_id, family.end)
    made = []
    for i in range(count):
        wave = (0.1 * draw.standard_normal(SECONDS * family.rate)).astype(np.float32)
        row = family.encode(wave, Prompt(), "" if labelled else None, None)
        if labelled:
            for name, filling in (("input_ids", words[i]), ("labels", words[i]), ("attention_mask", words[i] * 0 + 1)):
                row[name] = torch.cat([row[name][:-1], filling, row[name][-1:]])  # the end mark stays last
        made.append(row)
    return collate(made, family.fields(generating=not labelled))
