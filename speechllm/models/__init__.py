"""The families, by name. Adding one: a module here and a line in FAMILIES."""

from __future__ import annotations

import json
import os

from speechllm.errors import UserError
from speechllm.models.base import Family
from speechllm.models.fun_asr_nano import FunAsrNano
from speechllm.models.whisper_qwen3 import WhisperQwen3

FAMILIES: dict[str, type[Family]] = {"fun_asr_nano": FunAsrNano, "whisper_qwen3": WhisperQwen3}


def open_family(name: str, folder: str) -> Family:
    """The family ``name`` on a checkpoint folder. Raises UserError for a name that is not in FAMILIES."""
    if name not in FAMILIES:
        raise UserError(f"unknown family {name}; there are: {', '.join(FAMILIES)}")
    return FAMILIES[name](folder)


def family_of(folder: str) -> str | None:
    """The family that a checkpoint's config.json names, if it is one of ours."""
    path = os.path.join(folder, "config.json")
    if not os.path.isfile(path):
        return None
    with open(path, encoding="utf-8") as file:
        kind = json.load(file).get("model_type")
    return kind if kind in FAMILIES else None
