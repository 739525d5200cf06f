"""The two layouts of a Qwen3-ForcedAligner checkpoint, the same tensors under two sets of names.

``hf`` is transformers' (Qwen3ForcedAligner-0.6B-hf): Qwen3ASRForTokenClassification with its processor.
``qwen`` is the original one (Qwen3-ForcedAligner-0.6B), which the package qwen-asr opens: all under ``thinker``.
Facts: qwen-asr 0.0.6 (core/transformers_backend), transformers' convert_qwen3_asr_to_hf.py.
"""

from __future__ import annotations

import fnmatch
import glob
import json
import os
import shutil
from typing import Any

from speechllm.errors import UserError
from speechllm.files import write_json
from speechllm.models.qwen3_forced_aligner.config import (
    AUDIO_TOKENS,
    from_transformers,
    to_transformers,
    whole,
)

FORMATS = ("hf", "qwen")
CONFIG, WEIGHTS = "config.json", "model.safetensors"
STEP = 0.08  # seconds of a class, where nothing says otherwise
# All that a checkpoint says beside its weights. It is copied, byte for byte but for the weights' type in config.json.
DESCRIPTION = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.*",
    "tokenizer*.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "LICENSE*",
)
NAMES = (  # prefixes of tensors: the original's, transformers'
    ("thinker.audio_tower.proj1.", "model.multi_modal_projector.linear_1."),
    ("thinker.audio_tower.proj2.", "model.multi_modal_projector.linear_2."),
    ("thinker.audio_tower.", "model.audio_tower."),
    ("thinker.model.", "model.language_model."),
    ("thinker.lm_head.", "score."),
)
# What transformers' processor turns a conversation into: the audio, then each word with its two slots.
TEMPLATE = (
    "{%- for message in messages -%}{%- for part in message.content -%}"
    "{%- if part.type == 'audio' -%}{{ '<|audio_start|><|audio_pad|><|audio_end|>' }}"
    "{%- elif part.type == 'text' -%}{{ part.text + '<timestamp><timestamp>' }}{%- endif -%}"
    "{%- endfor -%}{%- endfor -%}"
)


def read_json(folder: str, name: str) -> dict:
    """A file of a checkpoint. Raises UserError where it is missing or broken."""
    path = os.path.join(folder, name)
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError as error:
        raise UserError(f"{folder}: no {name} in it, so it is no checkpoint; give its folder or hub name") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); download it again") from error


def layout_of(folder: str, said: dict) -> str:
    """Which of FORMATS a checkpoint's config.json describes.

    Raises:
        UserError: neither; Qwen3-ASR, the recogniser, shares the architecture and the name of its type.
    """
    if said.get("model_type") != "qwen3_asr":
        raise UserError(
            f"{folder}: its config.json says {said.get('model_type')}, not qwen3_asr; give a forced aligner"
        )
    if "classify_num" in said.get("thinker_config", {}):
        return "qwen"
    if "thinker_config" not in said and "Qwen3ASRForTokenClassification" in (said.get("architectures") or ()):
        return "hf"
    raise UserError(
        f"{folder}: this is Qwen3-ASR, the recogniser, not its forced aligner; give one such as "
        "Qwen/Qwen3-ForcedAligner-0.6B"
    )


def open_config(folder: str) -> tuple[str, Any, float]:
    """The layout, transformers' config of the model, and the milliseconds of a class."""
    from transformers import Qwen3ASRConfig

    said = read_json(folder, CONFIG)
    layout = layout_of(folder, said)
    if layout == "qwen":
        return layout, to_transformers(folder, said), float(said["timestamp_segment_time"])
    return layout, Qwen3ASRConfig.from_pretrained(folder), _step(folder)


def _step(folder: str) -> float:
    """Milliseconds, from transformers' processor."""
    name = "processor_config.json"
    said = read_json(folder, name) if os.path.isfile(os.path.join(folder, name)) else {}
    return float(said.get("timestamp_segment_time", STEP * 1000))


def renamed(name: str, layout: str) -> str:
    """A tensor's name in ``layout``, from its name in the other; one that is in neither stays, to be reported."""
    for pair in NAMES:
        old, new = pair if layout == "hf" else pair[::-1]
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def read_weights(folder: str) -> dict:
    """The tensors of an original checkpoint in float32, under transformers' names."""
    from safetensors.torch import load_file

    paths = sorted(glob.glob(os.path.join(glob.escape(folder), "model*.safetensors")))
    if not paths:
        raise UserError(f"{folder}: no model.safetensors in it; download the checkpoint again")
    return {renamed(name, "hf"): tensor.float() for path in paths for name, tensor in load_file(path).items()}


def write(folder: str, layout: str, state: dict, source: str, opened: Any) -> None:
    """A whole checkpoint.

    The description of each layout is the one that ``source`` has; that of the layout which is not written lies in a
    folder of its name, so that the way back gives it again. What was never there is made from the config.

    Args:
        state: tensors under transformers' names.
        source: the checkpoint that was opened.
        opened: the family, with ``format``, ``config``, ``tokenizer``, ``extractor`` and ``step``.
    """
    for one in FORMATS:
        home = source if one == opened.format else os.path.join(source, one)
        target = folder if one == layout else os.path.join(folder, one)
        if os.path.isfile(os.path.join(home, CONFIG)):
            _copy_description(home, target)
        elif one == layout:
            describe(target, one, opened.config, opened.tokenizer, opened.extractor, opened.step)
    write_weights(folder, layout, state)


def write_weights(folder: str, layout: str, state: dict) -> None:
    """The tensors, under the layout's names, and their type in config.json, which transformers loads them in."""
    from safetensors.torch import save_file

    said = read_json(folder, CONFIG)
    kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in state.values()}
    _put_dtype(said, kinds.pop() if len(kinds) == 1 else "float32")
    write_json(os.path.join(folder, CONFIG), said)
    state = {renamed(name, layout): tensor.contiguous() for name, tensor in state.items()}
    save_file(state, os.path.join(folder, WEIGHTS), {"format": "pt"})


def _put_dtype(said: dict, dtype: str) -> None:
    """It stands there once per part."""
    said["dtype"] = dtype
    said.pop("torch_dtype", None)
    for part in said.values():
        if isinstance(part, dict) and "model_type" in part:
            _put_dtype(part, dtype)


def _copy_description(source: str, target: str) -> None:
    os.makedirs(target, exist_ok=True)
    for name in os.listdir(source):
        if any(fnmatch.fnmatch(name, pattern) for pattern in DESCRIPTION):
            shutil.copy(os.path.join(source, name), target)


def describe(folder: str, layout: str, config: Any, tokenizer: Any, extractor: Any, step: float) -> None:
    """Config, processor and tokenizer in a layout that the checkpoint never had.

    Args:
        step: seconds of a class.

    Raises:
        UserError: the model has what the layout has no place for.
    """
    from transformers import Qwen3ASRProcessor

    if layout == "hf":
        config.architectures = ["Qwen3ASRForTokenClassification"]
        config.save_pretrained(folder)
        Qwen3ASRProcessor(
            extractor, tokenizer, chat_template=TEMPLATE, timestamp_segment_time=whole(step * 1000)
        ).save_pretrained(folder)
        return
    os.makedirs(folder, exist_ok=True)
    write_json(os.path.join(folder, CONFIG), from_transformers(config, tokenizer, step))
    heard = {key: value for key, value in extractor.to_dict().items() if key not in ("min_length", "n_window")}
    heard |= {"feature_extractor_type": "WhisperFeatureExtractor", "processor_class": "Qwen3ASRProcessor"}
    write_json(os.path.join(folder, "preprocessor_config.json"), heard)
    tokenizer.save_pretrained(folder)
    said = read_json(folder, "tokenizer_config.json")
    # transformers 4, which qwen-asr needs, knows neither this class nor a list under extra_special_tokens
    said["additional_special_tokens"] = said.pop("extra_special_tokens", [])
    if said.pop("backend", None) and said["tokenizer_class"] == "TokenizersBackend":
        said["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(os.path.join(folder, "tokenizer_config.json"), said | {"extra_special_tokens": AUDIO_TOKENS})
