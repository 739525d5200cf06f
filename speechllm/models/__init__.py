"""The families, by name. Adding one: a module here and a line in FAMILIES."""

from __future__ import annotations

import json
import os

from speechllm.errors import UserError
from speechllm.models.base import Family
from speechllm.models.fun_asr_nano import FunAsrNano
from speechllm.models.qwen3_forced_aligner import Qwen3ForcedAligner
from speechllm.models.whisper_qwen3 import WhisperQwen3

FAMILIES: dict[str, type[Family]] = {family.name: family for family in (FunAsrNano, WhisperQwen3, Qwen3ForcedAligner)}


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
        said = json.load(file)
    return next((name for name, family in FAMILIES.items() if family.recognises(said)), None)
