"""Put a model together from a Whisper and a Qwen3, and give a model new tokens."""

from __future__ import annotations

import logging
import os
import shutil
from typing import Any

import torch
from torch import nn

from speechllm.errors import UserError
from speechllm.models.whisper_qwen3.family import AUDIO_TOKEN, WhisperQwen3, read_config
from speechllm.models.whisper_qwen3.model import Projector, WhisperQwen3Config, WhisperQwen3Model
from speechllm.phonemes import TOKEN, Phonemes

log = logging.getLogger("speechllm")


def compose(encoder: str, llm: str, **options: Any) -> tuple[WhisperQwen3Model, Any, Any]:
    """A model from two checkpoints, each tensor in the type that it is stored in; the projector is random.

    Args:
        encoder: folder of a Whisper checkpoint; its decoder is left out.
        llm: folder of a Qwen3 checkpoint.
        options: of WhisperQwen3Config.

    Returns:
        the model, the LLM's tokenizer, Whisper's feature extractor.

    Raises:
        UserError: a folder holds another model, or the audio is to be longer than the encoder takes.
    """
    from transformers import AutoTokenizer, Qwen3ForCausalLM, WhisperFeatureExtractor, WhisperModel

    for folder, kind in ((encoder, "whisper"), (llm, "qwen3")):
        found = read_config(folder).get("model_type")
        if found != kind:
            raise UserError(f"{folder}: its config.json says {found}, a {kind} model is needed")
    whisper = WhisperModel.from_pretrained(encoder, dtype="auto")
    language = Qwen3ForCausalLM.from_pretrained(llm, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(llm)
    token = tokenizer.convert_tokens_to_ids(AUDIO_TOKEN)
    if token in (None, tokenizer.unk_token_id):
        raise UserError(f"{llm}: its tokenizer has no {AUDIO_TOKEN}, as every Qwen3 has; take a Qwen3 checkpoint")
    parts = {"audio_config": whisper.config, "text_config": language.config}
    parts = {name: _without_path(config.to_dict()) for name, config in parts.items()}
    config = WhisperQwen3Config(**parts, audio_token_id=token, **options)
    longest = config.audio_config.max_source_positions / 50
    if not 0 < config.max_audio_seconds <= longest:
        raise UserError(f"max_audio_seconds is {config.max_audio_seconds:g}; the encoder takes 0 to {longest:g} s")
    with torch.device("meta"):
        model = WhisperQwen3Model(config)
    model.audio_tower.load_state_dict(whisper.encoder.state_dict(), assign=True)
    model.language_model = language
    model.projector = Projector(
        config.audio_config.d_model, config.encoder_projector_ds_rate, language.config.hidden_size
    )
    return model, tokenizer, WhisperFeatureExtractor.from_pretrained(encoder)


def _without_path(config: dict) -> dict:
    """A model's folder can be moved: it must not say where it came from."""
    return {key: value for key, value in config.items() if key != "_name_or_path"}


def extend(model: WhisperQwen3Model, before: Any, after: Any, with_ctc: bool) -> list[str]:
    """Give the model the tokens that one tokenizer has and another had not.

    A new row of the embedding, and of the head, is the mean of the rows of the token's pieces. Rows that the LLM keeps
    in reserve are taken first.

    Args:
        before, after: the tokenizers.
        with_ctc: whether there is to be a CTC head; one that is there stays, with new classes for new phonemes.

    Returns:
        the new tokens.

    Raises:
        UserError: a token has another id than before.
    """
    known, wanted = before.get_vocab(), after.get_vocab()
    moved = [name for name, i in known.items() if wanted.get(name) != i]
    if moved:
        raise UserError(
            f"{after.name_or_path}: {len(moved)} token(s) of the model have another id there, first {moved[0]!r}; "
            "extend the model's own tokenizer with tools/build_phoneme_vocab.py"
        )
    new = sorted(wanted.keys() - known.keys(), key=wanted.get)
    llm = model.language_model
    size = max(llm.get_input_embeddings().num_embeddings, max(wanted.values()) + 1)
    llm.resize_token_embeddings(size, mean_resizing=False)
    model.config.text_config.vocab_size = size
    with torch.no_grad():
        for table in {
            id(weight): weight for weight in (llm.get_input_embeddings().weight, llm.lm_head.weight)
        }.values():
            for name in new:
                pieces = before.encode(found[1] if (found := TOKEN.fullmatch(name)) else name, add_special_tokens=False)
                table[wanted[name]] = table[pieces].float().mean(0).to(table.dtype)
    if with_ctc or model.ctc_head:
        model.ctc_head = _ctc_head(model, list(Phonemes(before).ids), list(Phonemes(after).ids))
        model.config.ctc_classes = model.ctc_head.out_features
    return new


def _ctc_head(model: WhisperQwen3Model, before: list[str], after: list[str]) -> nn.Linear:
    """A head for these phonemes; the classes that the model's own head knows are copied."""
    if not after:
        raise UserError("a CTC head needs phonemes; give a tokenizer made by tools/build_phoneme_vocab.py")
    head, old = nn.Linear(model.config.text_config.hidden_size, len(after) + 1), model.ctc_head
    if old:
        kept = [0, *(after.index(symbol) + 1 for symbol in before)]
        with torch.no_grad():
            head.weight[kept], head.bias[kept] = old.weight.float(), old.bias.float()
    return head


def make(output_dir: str, folders: list[str], tokenizer: str, with_ctc: bool = False, **options: Any) -> list[str]:
    """Write a model, whole or not at all.

    Args:
        folders: that of a model of this family, or those of an encoder and of an LLM.
        tokenizer: folder of the extended tokenizer; empty: no new tokens.
        options: of WhisperQwen3Config, for a model that is put together.

    Returns:
        the tokens that are new.
    """
    from transformers import AutoTokenizer

    out = os.path.normpath(output_dir)
    if os.path.isdir(out) and os.listdir(out):
        raise UserError(f"{out} is not empty; give another ++output_dir, or empty it")
    part = f"{out}.part"
    shutil.rmtree(part, ignore_errors=True)
    if len(folders) == 1:
        family = WhisperQwen3(folders[0])
        model, before = family.load(), family.tokenizer
    else:
        model, before, extractor = compose(*folders, **options)
    after = AutoTokenizer.from_pretrained(tokenizer) if tokenizer else before
    new = extend(model, before, after, with_ctc)
    if len(folders) == 1:
        family.tokenizer = after
        family.save(model, part)
    else:
        for one in (model, after, extractor):
            one.save_pretrained(part)
    os.replace(part, out)
    return new
