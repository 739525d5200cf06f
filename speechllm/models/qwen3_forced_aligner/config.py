"""The original config.json of Qwen3-ForcedAligner into transformers' Qwen3ASRConfig, and back."""

from __future__ import annotations

from typing import Any

from speechllm.errors import UserError

AUDIO_START, AUDIO_PAD, AUDIO_END, TIMESTAMP = "<|audio_start|>", "<|audio_pad|>", "<|audio_end|>", "<timestamp>"
# by the names under which both packages' processors ask the tokenizer for them
AUDIO_TOKENS = {"audio_token": AUDIO_PAD, "audio_bos_token": AUDIO_START, "audio_eos_token": AUDIO_END}
NEEDED = ("timestamp_token_id", "timestamp_segment_time")
NEEDED_INSIDE = ("classify_num", "audio_token_id", "audio_config", "text_config")
CHUNK = 50  # n_window: half the frames of a chunk of the encoder; both packages count vectors by 13 a chunk of 100
# What qwen-asr takes where the key is missing, where transformers takes something else.
MISSING_AUDIO = {
    "encoder_layers": 32,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "d_model": 1280,
    "n_window": 100,
    "n_window_infer": 400,
}
MISSING_TEXT = {"max_position_embeddings": 128000}
MISSING_THETA = 5e6
# What qwen-asr's text model has not, or has under another name.
ABSENT = (
    "rope_parameters",
    "layer_types",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
)
MROPE = [24, 20, 20]  # audio and text have one position, not three, so that the sections do not matter


def to_transformers(folder: str, said: dict) -> Any:
    """transformers' config from the original config.json.

    Raises:
        UserError: keys are missing, or it describes what transformers' class does not compute.
    """
    from transformers import Qwen3ASRConfig, Qwen3ASREncoderConfig, Qwen3Config

    inner = said["thinker_config"]
    missing = [key for key in NEEDED if key not in said]
    missing += [f"thinker_config.{key}" for key in NEEDED_INSIDE if key not in inner]
    if missing:
        raise UserError(f"{folder}: config.json lacks {', '.join(missing)}; download it again")
    audio, text = _known(Qwen3ASREncoderConfig, inner["audio_config"]), _known(Qwen3Config, inner["text_config"])
    scaling = inner["text_config"].get("rope_scaling") or {}
    kind = scaling.get("type", scaling.get("rope_type", "default"))
    audio, text = MISSING_AUDIO | audio, MISSING_TEXT | text
    if kind != "default" or audio["n_window"] != CHUNK:
        raise UserError(
            f"{folder}: config.json has rope_scaling of type {kind} and n_window {audio['n_window']}; default and "
            f"{CHUNK} can be computed"
        )
    theta = inner["text_config"].get("rope_theta", MISSING_THETA)
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": float(theta)}
    tied = text.setdefault("tie_word_embeddings", False)
    kept = {key: said[key] for key in ("pad_token_id", "eos_token_id") if said.get(key) is not None}
    kept |= {key: inner[key] for key in ("initializer_range",) if key in inner}
    return Qwen3ASRConfig(
        audio_config=audio | {"model_type": "qwen3_asr_encoder", "max_position_embeddings": 13},
        text_config=text | {"model_type": "qwen3"},
        num_labels=inner["classify_num"],
        audio_token_id=inner["audio_token_id"],
        timestamp_token_id=said["timestamp_token_id"],
        tie_word_embeddings=tied,
        **kept,
    )


def _known(kind: Any, said: dict) -> dict:
    """What transformers' config has a key for; the rest is written back from the original file."""
    return {key: said[key] for key in kind.__annotations__ if said.get(key) is not None}


def from_transformers(config: Any, tokenizer: Any, step: float) -> dict:
    """The original config.json of a model that never had one.

    Raises:
        UserError: the model has what qwen-asr's class has no place for.
    """
    import transformers

    audio, text = config.audio_config, config.text_config
    rope = text.rope_parameters
    wrong = {
        "token_classification_bias": config.token_classification_bias,
        "text_config.use_sliding_window": text.use_sliding_window,
        "text_config.rope_parameters": rope["rope_type"] != "default" and rope["rope_type"],
    }
    if any(wrong.values()):
        found = ", ".join(f"{key}: {value}" for key, value in wrong.items() if value)
        raise UserError(f"qwen-asr's model has no {found}; such a model is written as hf only")
    encoder = {key: getattr(audio, key) for key in type(audio).__annotations__ if key != "max_position_embeddings"}
    llm = {key: getattr(text, key) for key in type(text).__annotations__ if key not in ABSENT}
    start, end = tokenizer.convert_tokens_to_ids([AUDIO_START, AUDIO_END])
    return {
        "architectures": ["Qwen3ASRForConditionalGeneration"],
        "model_type": "qwen3_asr",
        "timestamp_token_id": config.timestamp_token_id,
        "timestamp_segment_time": whole(step * 1000),
        "pad_token_id": config.pad_token_id,
        "eos_token_id": config.eos_token_id,
        "thinker_config": {
            "model_type": "qwen3_forced_aligner",  # or qwen-asr builds the recogniser's head
            "classify_num": config.num_labels,
            "audio_token_id": config.audio_token_id,
            "audio_start_token_id": start,
            "audio_end_token_id": end,
            "initializer_range": config.initializer_range,
            "audio_config": encoder | {"model_type": "qwen3_asr_audio_encoder"},
            "text_config": llm
            | {
                "model_type": "qwen3_asr_text",
                "rope_theta": rope["rope_theta"],
                "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": MROPE},
                "tie_word_embeddings": False,  # or qwen-asr makes the head the embedding's matrix
            },
        },
        "transformers_version": transformers.__version__,  # without it, transformers 4.57 changes the tokenizer's rules
    }


def whole(milliseconds: float) -> float:
    """80, not 80.0, as both layouts have it."""
    rounded = round(milliseconds, 6)
    return int(rounded) if rounded == int(rounded) else rounded
