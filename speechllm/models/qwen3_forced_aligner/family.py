"""Qwen3-ForcedAligner: audio and its words in, a class of time at each slot out, all slots in one pass.

B rows, L mel frames of 10 ms, T vectors that the LLM hears, S slots of all rows, two per word.
Qwen3-ASR technical report (Shi et al., 2026); transformers' Qwen3ASRForTokenClassification.
"""

from __future__ import annotations

import os
import tempfile

import numpy as np

from speechllm.batching import Concat, Pad
from speechllm.errors import UserError
from speechllm.models import storage
from speechllm.models.base import Aligns, Family
from speechllm.models.qwen3_forced_aligner import layouts
from speechllm.models.qwen3_forced_aligner.config import AUDIO_END, AUDIO_PAD, AUDIO_START, AUDIO_TOKENS, TIMESTAMP
from speechllm.text.words import split


class Qwen3ForcedAligner(Family, Aligns):
    """Opens transformers' layout (Qwen3-ForcedAligner-0.6B-hf) and the original one (Qwen3-ForcedAligner-0.6B).

    The model is transformers' class either way.

    Attributes:
        format: the layout that was opened, one of ``formats``.
    """

    name = "qwen3_forced_aligner"
    formats = layouts.FORMATS
    special_tokens = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", AUDIO_START, AUDIO_END, AUDIO_PAD, TIMESTAMP)

    def __init__(self, folder: str):
        from transformers import AutoTokenizer, Qwen3ASRFeatureExtractor

        super().__init__(folder)
        self.format, self.config, milliseconds = layouts.open_config(folder)
        self.extractor = Qwen3ASRFeatureExtractor.from_pretrained(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, config=self.config, **AUDIO_TOKENS)
        self.classes, self.step = self.config.num_labels, milliseconds / 1000
        words = self.tokenizer.get_vocab()
        lacking = [token for token in (AUDIO_START, AUDIO_PAD, AUDIO_END, TIMESTAMP) if token not in words]
        if lacking:
            raise UserError(f"{folder}: the tokenizer has no {', '.join(lacking)}; put that of a forced aligner there")
        self.marks = {token: self.tokenizer.convert_tokens_to_ids(token) for token in self.special_tokens}
        said = {AUDIO_PAD: self.config.audio_token_id, TIMESTAMP: self.config.timestamp_token_id}
        wrong = [
            f"{token} is {self.marks[token]}, not {said[token]}" for token in said if self.marks[token] != said[token]
        ]
        if wrong:
            raise UserError(f"{folder}: the tokenizer is of another model than config.json: {', '.join(wrong)}")

    @classmethod
    def recognises(cls, config):
        return config.get("model_type") == "qwen3_asr"  # of a recogniser too, which is then refused by that name

    @classmethod
    def create(cls, sizes, tokenizer, folder, format):
        from transformers import (
            AutoTokenizer,
            Qwen3ASRConfig,
            Qwen3ASRFeatureExtractor,
            Qwen3ASRForTokenClassification,
        )

        ids = {"audio_token_id": AUDIO_PAD, "timestamp_token_id": TIMESTAMP, "pad_token_id": "<|endoftext|>"}
        ids = {key: tokenizer.convert_tokens_to_ids(token) for key, token in ids.items()}
        text = sizes["text_config"] | {"vocab_size": len(tokenizer)}
        config = Qwen3ASRConfig(**sizes | ids | {"text_config": text})
        extractor = Qwen3ASRFeatureExtractor(feature_size=config.audio_config.num_mel_bins)
        state = Qwen3ASRForTokenClassification(config).state_dict()
        with tempfile.TemporaryDirectory() as scratch:
            tokenizer.save_pretrained(scratch)
            named = AutoTokenizer.from_pretrained(scratch, **AUDIO_TOKENS)
        layouts.describe(folder, format, config, named, extractor, layouts.STEP)
        layouts.write_weights(folder, format, state)

    def load(self):
        from transformers import Qwen3ASRForTokenClassification

        if self.format == "hf":
            return storage.load(Qwen3ASRForTokenClassification, self.folder, self.folder)
        state = layouts.read_weights(self.folder)
        return storage.load(Qwen3ASRForTokenClassification, None, self.folder, config=self.config, state_dict=state)

    def stamp(self):
        return os.stat(os.path.join(self.folder, layouts.CONFIG)).st_mtime_ns

    def parts(self, model):
        return {
            "audio_encoder": (model.model.audio_tower,),
            "audio_adaptor": (model.model.multi_modal_projector,),
            "llm": (model.model.language_model,),
            "head": (model.score,),
        }

    def save(self, model, folder, format=""):
        """Tensors that were not trained keep their type and bytes; what training changed stays in float32."""
        stored = {layouts.renamed(name, "hf"): kind for name, kind in storage.dtypes(self.folder).items()}
        state = {name: storage.narrow(tensor.cpu(), stored.get(name)) for name, tensor in model.state_dict().items()}
        layouts.write(folder, format or self.format, state, self.folder, self)

    def fields(self, generating):
        text = {"input_ids": Pad(self.marks["<|endoftext|>"]), "attention_mask": Pad(0)}
        audio = {"features": Pad(0.0), "features_mask": Pad(0)}
        return text | audio | {"places": Concat(), "letters": Pad(0), "duration": Concat()}

    # ---- Aligns

    def split(self, text, language):
        return split(text, language)

    def encode(self, wave, words, spans=None, marked=None, augment=None):
        import torch

        seconds, longest = len(wave) / self.rate, self.classes * self.step
        if seconds > longest:
            raise UserError(f"{seconds:.1f} s, and the model's classes end at {longest:g} s; cut audio and text")
        mel = self.log_mel(wave)
        features = torch.from_numpy(augment.mel(mel) if augment else mel)
        ids = [self.marks[AUDIO_START], *[self.marks[AUDIO_PAD]] * self.vectors(len(mel)), self.marks[AUDIO_END]]
        marked = np.ones(len(words), bool) if marked is None else np.array(marked)
        tokens = self.tokenizer(words, add_special_tokens=False)["input_ids"]
        for word, mark in zip(tokens, marked.tolist(), strict=True):
            ids += word + [self.marks[TIMESTAMP]] * 2 * mark
        row = {"input_ids": torch.tensor(ids), "attention_mask": torch.ones(len(ids), dtype=torch.long)}
        if spans is not None:
            row["places"] = torch.from_numpy(spans[marked].astype(np.float32)).flatten() / self.step
        else:  # for the answer: tokens give the words back in normal form C only, the mask counts zeros filled in
            row["letters"] = torch.tensor([ord(letter) for letter in "\n".join(words)])
            row["duration"] = torch.tensor([seconds], dtype=torch.float64)
        return row | {"features": features, "features_mask": torch.ones(len(mel), dtype=torch.long)}

    def log_mel(self, wave: np.ndarray) -> np.ndarray:
        """Whisper's log-mel spectrogram (L, mel); what is shorter than 0.5 s is filled with zeros first."""
        made = self.extractor(wave, sampling_rate=self.rate, padding=False, n_window=0, return_tensors="np")
        return np.ascontiguousarray(made["input_features"][0].T)

    def vectors(self, frames: int) -> int:
        """How many vectors the encoder makes of so many frames."""
        window = 2 * self.config.audio_config.n_window
        full, rest = divmod(frames, window)
        return full * _halved(window) + _halved(rest)

    def slots(self, batch):
        return batch["input_ids"].eq(self.marks[TIMESTAMP]).sum(1).tolist()

    def words(self, batch):
        return ["".join(map(chr, row)).rstrip("\0").split("\n") for row in batch["letters"].tolist()]

    def seconds(self, batch):
        return batch["duration"].tolist()

    def slot_logits(self, model, batch):
        import torch.nn.functional as F

        features, mask = batch["features"].transpose(1, 2), batch["features_mask"]
        rest = -features.shape[-1] % (2 * self.config.audio_config.n_window)  # the encoder works by whole chunks
        hidden = model.model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            input_features=F.pad(features, (0, rest)),
            input_features_mask=F.pad(mask, (0, rest)),
            use_cache=False,
        ).last_hidden_state
        return model.score(model.dropout(hidden[batch["input_ids"].eq(self.marks[TIMESTAMP])]))


def _halved(frames: int) -> int:
    """Frames that three convolutions of stride 2 leave."""
    for _ in range(3):
        frames = -(-frames // 2)
    return frames
