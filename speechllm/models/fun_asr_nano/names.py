"""Fun-ASR-Nano's tensors under FunASR's names and under transformers', one to one, values untouched.

FunASR's names are those of funasr 1.4.16 (models/fun_asr_nano, models/sense_voice, models/llm_asr/adaptor.py). Its CTC
head (``ctc*``) has no counterpart: it is no part of the way to the LLM.
"""

from __future__ import annotations

import re
from typing import Any

from speechllm.errors import UserError

CTC = "ctc"
HEAD, EMBEDDING = "llm.lm_head.weight", "llm.model.embed_tokens.weight"
# Inside a layer of the encoder or the adaptor, transformers' name -> FunASR's.
LAYER = {
    "input_layernorm": "norm1",
    "post_attention_layernorm": "norm2",
    "self_attn.o_proj": "self_attn.linear_out",
    "self_attn.fsmn.conv": "self_attn.fsmn_block",
    "mlp.fc1": "feed_forward.w_1",
    "mlp.fc2": "feed_forward.w_2",
}
PLAIN = (
    ("model.language_model.", "llm.model."),
    ("lm_head.", "llm.lm_head."),
    ("model.multi_modal_projector.linear_", "audio_adaptor.linear"),
)
IN_LAYER = re.compile(r"model\.(audio_tower|multi_modal_projector)\.layers\.(\d+)\.(.+)\.(weight|bias)")


def native_name(name: str, blocks: int) -> tuple[str, int | None]:
    """FunASR's name of one of transformers' tensors, and which third of it where FunASR keeps q, k and v in one.

    Args:
        blocks: encoder layers before the timestamp layers.
    """
    for ours, theirs in PLAIN:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours), None
    tower, number, inner, leaf = IN_LAYER.fullmatch(name).groups()
    layer, letter = int(number), re.fullmatch(r"self_attn\.([qkv])_proj", inner)
    if tower == "multi_modal_projector":
        inner = f"self_attn.linear_{letter[1]}" if letter else LAYER[inner]
        return f"audio_adaptor.blocks.{layer}.{inner}.{leaf}", None
    if inner == "final_layernorm":
        return f"audio_encoder.{'after_norm' if layer < blocks else 'tp_norm'}.{leaf}", None
    stack, index = ("tp_encoders", layer - blocks) if layer >= blocks else ("encoders", layer - 1)
    where = f"audio_encoder.{stack}.{index}" if layer else "audio_encoder.encoders0.0"
    if letter:
        return f"{where}.self_attn.linear_q_k_v.{leaf}", "qkv".index(letter[1])
    return f"{where}.{LAYER[inner]}.{leaf}", None


def _blocks(config: Any) -> int:
    return config.audio_config.num_hidden_layers - config.audio_config.num_timestamp_prediction_layers


def from_native(state: dict, config: Any, where: str) -> dict:
    """FunASR's tensors under transformers' names, as views; of tied ones, the embedding's alone.

    Args:
        config: transformers' config of the model.
        where: the file, for messages.

    Raises:
        UserError: tensors are missing, or there are others than the model's and ``ctc*``; both are listed.
    """
    import torch
    from transformers import FunAsrNanoForConditionalGeneration

    with torch.device("meta"):
        names = list(FunAsrNanoForConditionalGeneration(config).state_dict())
    wanted = {name: native_name(name, _blocks(config)) for name in names}
    if config.tie_word_embeddings:
        wanted.pop("lm_head.weight")
    needed = {theirs for theirs, _ in wanted.values()}
    extra = sorted(name for name in set(state) - needed - {HEAD} if not name.startswith(CTC))
    if extra or needed - set(state):
        raise UserError(
            f"{where}: the weights do not fit the model that config.yaml describes; missing: "
            f"{sorted(needed - set(state))}, unexpected: {extra}. Give the config.yaml that belongs to these weights"
        )
    return {
        ours: state[theirs] if third is None else state[theirs].chunk(3)[third]
        for ours, (theirs, third) in wanted.items()
    }


def to_native(state: dict, config: Any) -> dict:
    """The inverse of :func:`from_native`; a tied output layer is named again, as FunASR does."""
    import torch

    found, fused = {}, {}
    for ours, tensor in state.items():
        theirs, third = native_name(ours, _blocks(config))
        if third is None:
            found[theirs] = tensor
        else:
            fused.setdefault(theirs, {})[third] = tensor
    found |= {name: torch.cat([thirds[i] for i in range(3)]) for name, thirds in fused.items()}
    if config.tie_word_embeddings:
        found[HEAD] = found[EMBEDDING]
    return found
