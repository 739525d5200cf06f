"""Whisper encoder, linear projector, Qwen3: audio to phonemes, or to any text.

B rows, L mel frames of 10 ms, T vectors that the LLM hears.
Whisper: Radford et al., 2023. The linear projector: SLAM-ASR (Ma et al., 2024).
"""

from __future__ import annotations

import json
import math
import os

import numpy as np

from speechllm.batching import Pad
from speechllm.errors import UserError
from speechllm.models import storage
from speechllm.models.chat import AudioChat

AUDIO_TOKEN = "<|object_ref_start|>"  # a token of every Qwen3 that text never uses
SHORTEST = 400  # samples of a window of 25 ms
CONFIG = "config.json"


class WhisperQwen3(AudioChat):
    """Opens a folder that tools/compose_model.py made, or a run: transformers' save_pretrained layout."""

    name = "whisper_qwen3"
    formats = ("hf",)

    def __init__(self, folder: str):
        from transformers import AutoTokenizer, WhisperFeatureExtractor

        from speechllm.models.whisper_qwen3.model import WhisperQwen3Config

        super().__init__(folder)
        said = read_config(folder)
        if said.get("model_type") != self.name:
            raise UserError(
                f"{folder}: its config.json says {said.get('model_type')}, not {self.name}; put a model together with "
                "tools/compose_model.py"
            )
        self.config = WhisperQwen3Config.from_pretrained(folder)
        self.extractor = WhisperFeatureExtractor.from_pretrained(folder)
        self.open_chat(AutoTokenizer.from_pretrained(folder, config=self.config), self.config.audio_token_id)
        self.has_ctc = bool(self.config.ctc_classes)
        if self.has_ctc and self.config.ctc_classes != len(self.phonemes.ids) + 1:
            raise UserError(
                f"{folder}: a CTC head of {self.config.ctc_classes} classes, and {len(self.phonemes.ids)} phonemes in "
                "the tokenizer; extend the model with tools/compose_model.py, not the tokenizer alone"
            )

    @classmethod
    def create(cls, sizes, tokenizer, folder, format):
        from transformers import WhisperFeatureExtractor

        from speechllm.models.whisper_qwen3.model import WhisperQwen3Config, WhisperQwen3Model

        special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0)
        audio = special | {"vocab_size": 1, "decoder_layers": 1} | sizes["audio_config"]  # there is no decoder
        text = sizes["text_config"] | {"vocab_size": len(tokenizer)}
        token = tokenizer.convert_tokens_to_ids(AUDIO_TOKEN)
        config = WhisperQwen3Config(**sizes | {"audio_config": audio, "text_config": text, "audio_token_id": token})
        WhisperQwen3Model(config).save_pretrained(folder)
        WhisperFeatureExtractor(feature_size=config.audio_config.num_mel_bins).save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    def load(self):
        from speechllm.models.whisper_qwen3.model import WhisperQwen3Model

        return storage.load(WhisperQwen3Model, self.folder, self.folder)

    def stamp(self):
        return os.stat(os.path.join(self.folder, CONFIG)).st_mtime_ns

    def parts(self, model):
        return {
            "audio_encoder": (model.audio_tower,),
            "audio_adaptor": (model.projector, *([model.ctc_head] if model.ctc_head else [])),
            "llm": (model.language_model.model, model.language_model.lm_head),
        }

    def save(self, model, folder, format=""):
        stored = storage.dtypes(self.folder)
        state = {name: storage.narrow(tensor.cpu(), stored.get(name)) for name, tensor in model.state_dict().items()}
        if self.config.text_config.tie_word_embeddings:
            state.pop("language_model.lm_head.weight")
        model.save_pretrained(folder, state_dict=state)
        self.extractor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def fields(self, generating):
        audio = {"features": Pad(0.0), "features_mask": Pad(0)}
        return super().fields(generating) | audio

    def encode(self, wave, prompt, answer, augment):
        import torch

        seconds, longest = len(wave) / self.rate, self.config.max_audio_seconds
        if seconds > longest:
            raise UserError(
                f"{seconds:.1f} s, and the model takes {longest:g} s; cut the audio: by Kaldi's segments to train, by "
                "++max_segment to decode"
            )
        mel = self.log_mel(wave)
        features = torch.from_numpy(augment.mel(mel) if augment else mel)
        mask = torch.ones(max(len(wave) // self.extractor.hop_length, 1), dtype=torch.long)
        vectors = math.ceil(math.ceil(len(mask) / 2) / self.config.encoder_projector_ds_rate)
        return {"features": features, "features_mask": mask} | self.chat(prompt, vectors, answer)

    def log_mel(self, wave: np.ndarray) -> np.ndarray:
        """Whisper's log-mel spectrogram (L, mel) of the audio as long as it is, or (3000, mel) where the model pads."""
        wave = np.pad(wave, (0, max(SHORTEST - len(wave), 0)))
        padding = "max_length" if self.config.pad_audio else "do_not_pad"
        made = self.extractor(wave, sampling_rate=self.rate, padding=padding, truncation=False, return_tensors="np")
        return np.ascontiguousarray(made["input_features"][0].T)

    def listen(self, model, batch):
        return model(batch["features"], batch["features_mask"])

    def llm(self, model):
        return model.language_model

    def ctc_head(self, model):
        return model.ctc_head


def read_config(folder: str) -> dict:
    """A checkpoint's config.json. Raises UserError where there is none."""
    path = os.path.join(folder, CONFIG)
    if not os.path.isfile(path):
        raise UserError(f"{folder}: no {CONFIG} in it, so it is no checkpoint; give its folder or hub name")
    with open(path, encoding="utf-8") as file:
        return json.load(file)
