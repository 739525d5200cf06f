"""FunASR's own layout of Fun-ASR-Nano: config.yaml, configuration.json, model.pt, the LLM's config and tokenizer."""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from typing import Any

from speechllm.errors import UserError
from speechllm.files import write_json
from speechllm.models.fun_asr_nano.baggage import (
    CONFIG,
    LLM,
    WEIGHTS,
    Baggage,
    get,
    put,
    read,
    read_weights,
    write_baggage,
)
from speechllm.models.fun_asr_nano.config import AUDIO_TOKEN, to_transformers
from speechllm.models.fun_asr_nano.names import from_native, to_native

__all__ = ["CONFIG", "dtypes", "open_folder", "weights", "write"]


def open_folder(folder: str) -> tuple[Any, Any, Baggage]:
    """The model's config, the tokenizer and the rest. Raises UserError for a folder that is not a whole checkpoint."""
    from transformers import AutoConfig, AutoTokenizer

    baggage = read(folder)
    llm, words = baggage.llm(), baggage.tokenizer()
    try:
        text_config, tokenizer = AutoConfig.from_pretrained(llm), AutoTokenizer.from_pretrained(words)
    except (OSError, ValueError) as error:
        raise UserError(f"{llm}: not the config and tokenizer of an LLM: {error}; download it again") from error
    for token in (AUDIO_TOKEN, "<|im_end|>"):
        if token not in tokenizer.get_vocab():
            raise UserError(f"{words}: the tokenizer has no {token}; put Qwen3's there")
    return to_transformers(baggage, text_config, tokenizer), tokenizer, baggage


def weights(folder: str, config: Any, baggage: Baggage) -> tuple[None, dict]:
    """What transformers loads from: the tensors under its names, copied out of the file."""
    import torch

    path = baggage.weights()
    state = from_native(read_weights(path), config, path)
    return None, {name: tensor.to(torch.float32, copy=True) for name, tensor in state.items()}


def dtypes(folder: str, config: Any, baggage: Baggage) -> dict:
    """The type that each tensor is stored in, by transformers' names."""
    path = baggage.weights()
    return {name: tensor.dtype for name, tensor in from_native(read_weights(path), config, path).items()}


def write(folder: str, model: Any, state: dict, tokenizer: Any, baggage: Baggage) -> None:
    """A whole native checkpoint.

    Args:
        state: the model's tensors under transformers' names.
        tokenizer: written where the baggage brings no LLM folder.
    """
    import torch

    config = model.config
    full = any(t.dtype == torch.float32 for name, t in state.items() if name.startswith("model.language_model."))
    if full and get(baggage.config, ("llm_conf", "llm_dtype"), "fp32") != "fp32":
        baggage = replace(baggage, config=copy.deepcopy(baggage.config))
        put(baggage.config, ("llm_conf", "llm_dtype"), "fp32")  # or funasr would round what was trained
    write_baggage(baggage, folder)
    if LLM not in baggage.files:
        write_llm(config.text_config, tokenizer, os.path.join(folder, get(baggage.config, LLM)))
    torch.save({"state_dict": to_native(state, config) | baggage.ctc()}, os.path.join(folder, WEIGHTS))


def write_llm(config: Any, tokenizer: Any, folder: str) -> None:
    """The folder that funasr builds the LLM from: its config, with the token that ends an answer, and its tokenizer."""
    tokenizer.save_pretrained(folder)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    said = config.to_dict() | {"architectures": ["Qwen3ForCausalLM"], "eos_token_id": end}
    said = {key: value for key, value in said.items() if key not in ("dtype", "_name_or_path")}
    write_json(os.path.join(folder, "config.json"), said)
