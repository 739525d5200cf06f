"""Tiny tokenizers, trained here, for the random models of tests and mini recipes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from speechllm.models.base import Family


def train_tokenizer(texts: Iterable[str], vocab_size: int, special: Sequence[str] = Family.special_tokens) -> Any:
    """A byte-level BPE tokenizer of Qwen's kind: any text round-trips, the given texts come out short.

    Args:
        special: tokens that no text makes; ``<|endoftext|>`` and ``<|im_end|>`` among them.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>")
