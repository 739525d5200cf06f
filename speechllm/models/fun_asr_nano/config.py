"""FunASR's config.yaml of Fun-ASR-Nano into transformers' FunAsrNanoConfig, and back.

Three things that transformers' config has no key for stand in it under FunASR's names, so that they live through a
conversion: ``use_low_frame_rate`` (the LLM hears the first T/8 frames of the adaptor, not all T), ``do_think`` and
``sys_prompt`` (the prompt's layout). Plain transformers does not know them.
"""

from __future__ import annotations

from typing import Any

from speechllm.errors import UserError
from speechllm.models.fun_asr_nano.baggage import Baggage, get

AUDIO_TOKEN = "<|object_ref_start|>"  # the place of an audio frame; no transcript holds it
RUN = {"use_low_frame_rate": False, "do_think": True, "sys_prompt": True}  # funasr's defaults, and -hf's
ADAPTOR_EPS = 1e-12  # funasr's LayerNorm in the adaptor; in the encoder it is 1e-5, as in transformers
# What the family computes, and what funasr takes where the key is missing.
FIXED = (
    ("model", "FunASRNano", None),
    ("audio_encoder", "SenseVoiceEncoderSmall", None),
    ("audio_encoder_conf.sanm_shfit", 0, 0),
    ("audio_adaptor", "Transformer", None),
    ("audio_adaptor_conf.downsample_rate", 1, 2),
    ("tokenizer", "HuggingfaceTokenizer", None),
    ("frontend", "WavFrontend", None),
    ("frontend_conf.fs", 16000, 16000),
    ("frontend_conf.window", "hamming", "hamming"),
    ("frontend_conf.n_mels", 80, 80),
    ("frontend_conf.frame_length", 25, 25),
    ("frontend_conf.frame_shift", 10, 10),
    ("frontend_conf.lfr_m", 7, 1),
    ("frontend_conf.lfr_n", 6, 1),
    ("frontend_conf.cmvn_file", None, None),
    ("frontend_conf.upsacle_samples", True, True),  # so spelt there
    ("frontend_conf.snip_edges", True, True),
)


# What config.yaml says beside the architecture; upstream's own trainer cannot do without the last five.
BESIDE = {
    "frontend": "WavFrontend",
    "frontend_conf": {
        "fs": 16000,
        "window": "hamming",
        "n_mels": 80,
        "frame_length": 25,
        "frame_shift": 10,
        "lfr_m": 7,
        "lfr_n": 6,
        "cmvn_file": None,
    },
    "tokenizer": "HuggingfaceTokenizer",
    "tokenizer_conf": {"init_param_path": "${llm_conf.init_param_path}"},
    "train_conf": {"accum_grad": 1, "grad_clip": 5},
    "optim": "adamw",
    "optim_conf": {"lr": 0.0002},
    "scheduler": "warmuplr",
    "scheduler_conf": {"warmup_steps": 2500},
}
DESCRIPTION = {
    "framework": "pytorch",
    "task": "auto-speech-recognition",
    "model": {"type": "funasr"},
    "pipeline": {"type": "funasr-pipeline"},
    "model_name_in_hub": {"ms": "", "hf": ""},
    "file_path_metas": {"llm_conf": {"init_param_path": "Qwen3-0.6B"}},
}


def to_transformers(baggage: Baggage, text_config: Any, tokenizer: Any) -> Any:
    """The model's config from a native checkpoint's.

    Args:
        text_config: the LLM's.

    Raises:
        UserError: config.yaml describes another front end or architecture than this family's.
    """
    from transformers import FunAsrNanoConfig

    said = baggage.config
    wrong = [
        f"{key}: {get(said, tuple(key.split('.')), default)} (not {value})"
        for key, value, default in FIXED
        if get(said, tuple(key.split(".")), default) != value
    ]
    if wrong:
        raise UserError(f"{baggage.folder}: config.yaml is not one of Fun-ASR-Nano: {', '.join(wrong)}")
    encoder, adaptor = said.get("audio_encoder_conf") or {}, said.get("audio_adaptor_conf") or {}
    data = said.get("dataset_conf") or {}
    text = {key: value for key, value in text_config.to_dict().items() if key not in ("dtype", "_name_or_path")}
    return FunAsrNanoConfig(
        audio_config={
            "hidden_size": encoder.get("output_size", 256),
            "num_attention_heads": encoder.get("attention_heads", 4),
            "intermediate_size": encoder.get("linear_units", 2048),
            "num_hidden_layers": encoder.get("num_blocks", 6) + encoder.get("tp_blocks", 0),
            "num_timestamp_prediction_layers": encoder.get("tp_blocks", 0),
            "hidden_dropout": encoder.get("dropout_rate", 0.1),
            "attention_dropout": encoder.get("attention_dropout_rate", 0.0),
            "fsmn_kernel_size": encoder.get("kernel_size", 11),
        },
        adaptor_config={
            "hidden_size": text_config.hidden_size,
            "intermediate_size": text_config.hidden_size // 4,
            "projector_hidden_size": adaptor.get("ffn_dim", 2048),
            "num_hidden_layers": adaptor.get("n_layer", 2),
            "num_attention_heads": adaptor.get("attention_heads", 8),
            "hidden_dropout": adaptor.get("dropout_rate", 0.0),
            "attention_dropout": adaptor.get("attention_dropout_rate", 0.0),
            "layer_norm_eps": ADAPTOR_EPS,
        },
        text_config=text,
        audio_token_id=tokenizer.convert_tokens_to_ids(AUDIO_TOKEN),
        tie_word_embeddings=text_config.tie_word_embeddings,
        **RUN | {key: value for key, value in (adaptor | data).items() if key in RUN},
    )


def from_transformers(config: Any) -> Baggage:
    """A native checkpoint's description of a model that never was one; its LLM folder is still to be written.

    funasr's LayerNorm adds 1e-12 in the adaptor whatever the config says; transformers' default is 1e-5.
    """
    audio, adaptor = config.audio_config, config.adaptor_config
    said = {
        "model": "FunASRNano",
        "model_conf": {"length_normalized_loss": True},
        "audio_encoder": "SenseVoiceEncoderSmall",
        "audio_encoder_conf": {
            "output_size": audio.hidden_size,
            "attention_heads": audio.num_attention_heads,
            "linear_units": audio.intermediate_size,
            "num_blocks": audio.num_hidden_layers - audio.num_timestamp_prediction_layers,
            "tp_blocks": audio.num_timestamp_prediction_layers,
            "dropout_rate": audio.hidden_dropout,
            "attention_dropout_rate": audio.attention_dropout,
            "kernel_size": audio.fsmn_kernel_size,
            "sanm_shfit": 0,
            "freeze": True,
        },
        "audio_adaptor": "Transformer",
        "audio_adaptor_conf": {
            "downsample_rate": 1,
            "use_low_frame_rate": config.use_low_frame_rate,
            "encoder_dim": audio.hidden_size,
            "llm_dim": config.text_config.hidden_size,
            "ffn_dim": adaptor.projector_hidden_size,
            "n_layer": adaptor.num_hidden_layers,
            "attention_heads": adaptor.num_attention_heads,
            "dropout_rate": adaptor.hidden_dropout,
            "attention_dropout_rate": adaptor.attention_dropout,
            "freeze": False,
        },
        "llm": "Qwen3-0.6b",
        "llm_conf": {"hub": "hf", "freeze": True, "llm_dtype": "fp32"} | DESCRIPTION["file_path_metas"]["llm_conf"],
        "dataset": "FunASR",
        "dataset_conf": {
            "index_ds": "FunASR",
            "batch_sampler": "BatchSampler",
            "batch_type": "token",
            "do_think": config.do_think,
            "sys_prompt": config.sys_prompt,
        },
    }
    return Baggage("", said | BESIDE, DESCRIPTION, {})
