"""Tiny random Whisper, Qwen3 and whisper_qwen3 checkpoints for the tests. Their scores mean nothing."""

from pathlib import Path

import numpy as np
from tiny import WORDS

from speechllm.batching import collate
from speechllm.phonemes import token
from speechllm.sample import Clip, Prompt, Sample
from speechllm.tasks import open_task

WHISPER = {
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "max_source_positions": 1500,
    "init_std": 0.2,
}
QWEN = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 4096,
    "initializer_range": 0.2,
}
SYMBOLS = ("sil", "sh", "iy", "a5", "ɪ")
ANSWERS = ("sil sh iy", "a5 sh sil ɪ ɪ", "iy")
RATE = 16000
PROMPT = Prompt(before="", after="请你做语音评测")


def tokenizer(symbols=(), marks=False):
    """Qwen's kind, with phonemes as tools/build_phoneme_vocab.py adds them."""
    from tokenizers import AddedToken

    from speechllm.models.tiny import train_tokenizer
    from speechllm.phonemes import MARKS

    made = train_tokenizer([*WORDS, Prompt().system] * 9, 400)
    names = [token(symbol) for symbol in symbols] + list(MARKS) * marks
    made.add_tokens([AddedToken(name, normalized=False, special=False) for name in names])
    return made


def make_whisper(folder: Path, mel: int = 80) -> Path:
    import torch
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

    torch.manual_seed(1)
    special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0)
    decoder = {"decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 32, "vocab_size": 50}
    WhisperModel(WhisperConfig(**WHISPER, **special, **decoder, num_mel_bins=mel)).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=mel).save_pretrained(folder)
    return folder


def make_qwen(folder: Path, tied: bool = True, spare: int = 0) -> Path:
    """``spare`` rows of its embedding belong to no token."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(2)
    words = tokenizer()
    config = Qwen3Config(**QWEN, vocab_size=len(words) + spare, tie_word_embeddings=tied)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def make_composite(folder: Path, symbols=SYMBOLS, marks=False, ctc=False, tied=True, mel=80, **options) -> Path:
    """Put together as tools/compose_model.py does it."""
    import torch

    from speechllm.models.whisper_qwen3.compose import make

    tokenizer(symbols, marks).save_pretrained(folder / "tokenizer")
    parts = [str(make_whisper(folder / "whisper", mel)), str(make_qwen(folder / "qwen", tied))]
    torch.manual_seed(3)
    make(str(folder / "model"), parts, str(folder / "tokenizer"), ctc, **options)
    return folder / "model"


def wave(seconds, seed=0):
    draw = np.random.default_rng(seed)
    samples = int(seconds * RATE)
    tone = np.sin(2 * np.pi * draw.uniform(200, 2000) * np.arange(samples) / RATE)
    return (0.2 * tone + 0.02 * draw.standard_normal(samples)).astype(np.float32)


def rows(family, task, answers=ANSWERS, prompt=PROMPT):
    for i, answer in enumerate(answers):
        sample = Sample(f"u{i}", Clip("x"), prompt, answer, 0, 0, "x:1")
        yield task.example(family, sample, wave(0.61 + 0.37 * i, i), None)


def batch_of(family, task, **kwargs):
    return collate(list(rows(family, task, **kwargs)), family.fields(generating=False))


def queries(family):
    samples = [Sample(f"u{i}", Clip("x"), PROMPT, None, 0, 0, "x:1") for i in range(3)]
    return [open_task("sft", family).query(family, one, wave(0.5 + 0.3 * i, i)) for i, one in enumerate(samples)]
