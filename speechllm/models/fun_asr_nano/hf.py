"""Transformers' layout of Fun-ASR-Nano, with what a native checkpoint has beside it kept in a folder ``funasr``."""

from __future__ import annotations

import glob
import json
import os
import shutil
from typing import Any

from speechllm.errors import UserError
from speechllm.files import write_json
from speechllm.models import storage
from speechllm.models.fun_asr_nano.baggage import KEPT, Baggage, read, write_baggage
from speechllm.models.fun_asr_nano.config import RUN

CONFIG, BESIDE = "config.json", "funasr"
PROCESSOR = ("preprocessor_config.json", "processor_config.json", "chat_template.*", "LICENSE*")


def open_folder(folder: str) -> tuple[Any, Any, Baggage | None]:
    """The model's config, the tokenizer, and the native rest where there is one.

    Raises:
        UserError: not a Fun-ASR-Nano checkpoint.
    """
    from transformers import AutoConfig, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}: not a Fun-ASR-Nano checkpoint: FunASR's layout has a config.yaml there, and as transformers' "
            f"it does not open: {error}"
        ) from error
    if config.model_type != "fun_asr_nano":
        raise UserError(f"{folder}: its config.json says {config.model_type}, not fun_asr_nano")
    for key, default in RUN.items():
        if not hasattr(config, key):
            setattr(config, key, default)
    beside = os.path.join(folder, BESIDE)
    return config, tokenizer, read(beside) if os.path.isdir(beside) else None


def weights(folder: str, config: Any, baggage: Baggage) -> tuple[str, None]:
    """What transformers loads from."""
    return folder, None


def dtypes(folder: str, config: Any, baggage: Baggage) -> dict:
    """The type that each tensor is stored in."""
    return storage.dtypes(folder)


def write(folder: str, model: Any, state: dict, tokenizer: Any, baggage: Baggage) -> None:
    """A whole checkpoint; what is native beside the model's tensors goes to ``funasr/``."""
    import torch
    from safetensors.torch import save_file

    model.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)
    path = os.path.join(folder, CONFIG)
    with open(path, encoding="utf-8") as file:
        said = json.load(file)
    kinds = {tensor.dtype for tensor in state.values()}
    dtype = str(kinds.pop() if len(kinds) == 1 else torch.float32).removeprefix("torch.")
    for part in (said, *(value for value in said.values() if isinstance(value, dict))):
        part["dtype"] = dtype
    write_json(path, said)
    if baggage.folder:
        beside = os.path.join(folder, BESIDE)
        write_baggage(baggage, beside)
        ctc = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in baggage.ctc().items()}
        save_file(ctc, os.path.join(beside, KEPT))


def copy_processor(source: str, target: str) -> None:
    """The processor's files, which plain transformers needs and this package does not."""
    for pattern in PROCESSOR:
        for path in glob.glob(os.path.join(glob.escape(source), pattern)):
            shutil.copy(path, target)
