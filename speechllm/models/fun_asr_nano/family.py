"""Fun-ASR-Nano: SenseVoice encoder, Transformer adaptor, Qwen3, on transformers' own class.

B rows, T stacked frames of 60 ms, L positions of text and audio, D width of the LLM.
Facts: funasr's models/fun_asr_nano/model.py (prompt layout, front end, frames that the LLM hears) and transformers'
FunAsrNano (weights, masks).
"""

from __future__ import annotations

import logging
import os

from speechllm.batching import Pad
from speechllm.errors import UserError
from speechllm.models import storage
from speechllm.models.chat import AudioChat
from speechllm.models.fun_asr_nano import hf, native
from speechllm.models.fun_asr_nano.config import AUDIO_TOKEN, RUN, from_transformers
from speechllm.models.fun_asr_nano.features import fbank, heard, stack_frames

log = logging.getLogger("speechllm")

LAYOUTS = {"hf": hf, "funasr": native}
UNLIKE = {
    "hf": "%s: this model hears the first T/8 of an audio's T frames. This package goes on so (use_low_frame_rate in "
    "config.json); plain transformers does not know that key, gives the LLM all frames, and will read worse",
    "funasr": "%s: this model hears all frames of an audio. This package and funasr.AutoModel go on so "
    "(use_low_frame_rate: false in config.yaml); upstream's trainer ignores that key and takes the first T/8",
}


class FunAsrNano(AudioChat):
    """Opens FunASR's own layout (config.yaml, model.pt) and transformers' (config.json, model.safetensors).

    The model is transformers' class either way, and ``config`` its config with FunASR's three keys of how a checkpoint
    is run (see :mod:`speechllm.models.fun_asr_nano.config`), so that a conversion changes nothing of what is computed.

    Attributes:
        format: the layout that was opened, one of ``formats``.
        baggage: what of a native checkpoint has no place in transformers' layout; made up where there never was one.
    """

    name = "fun_asr_nano"
    formats = tuple(LAYOUTS)

    def __init__(self, folder: str):
        super().__init__(folder)
        self.format = "funasr" if os.path.isfile(os.path.join(folder, native.CONFIG)) else "hf"
        self.config, tokenizer, found = LAYOUTS[self.format].open_folder(folder)
        self.baggage = found or from_transformers(self.config)
        self.open_chat(tokenizer, self.config.audio_token_id)

    @classmethod
    def create(cls, sizes, tokenizer, folder, format):
        from transformers import FunAsrNanoConfig, FunAsrNanoForConditionalGeneration

        width = sizes["text_config"]["hidden_size"]
        text = sizes["text_config"] | {"model_type": "qwen3", "vocab_size": len(tokenizer)}
        adaptor = sizes["adaptor_config"] | {"hidden_size": width, "intermediate_size": width // 4}
        token = tokenizer.convert_tokens_to_ids(AUDIO_TOKEN)
        sizes = sizes | {"audio_token_id": token, "text_config": text, "adaptor_config": adaptor}
        sizes |= RUN | {"use_low_frame_rate": format == "funasr"}
        config = FunAsrNanoConfig(**sizes)
        model = FunAsrNanoForConditionalGeneration(config)
        LAYOUTS[format].write(folder, model, model.state_dict(), tokenizer, from_transformers(config))

    def load(self):
        from transformers import FunAsrNanoForConditionalGeneration

        frames = "the first T/8 of its T frames" if self.config.use_low_frame_rate else "all its frames"
        log.info("%s: Fun-ASR-Nano, layout %s; of an audio the LLM hears %s", self.folder, self.format, frames)
        source, state = LAYOUTS[self.format].weights(self.folder, self.config, self.baggage)
        kind = FunAsrNanoForConditionalGeneration
        return storage.load(kind, source, self.folder, config=self.config, state_dict=state)

    def stamp(self):
        return os.stat(os.path.join(self.folder, LAYOUTS[self.format].CONFIG)).st_mtime_ns

    def parts(self, model):
        return {
            "audio_encoder": (model.model.audio_tower,),
            "audio_adaptor": (model.model.multi_modal_projector,),
            "llm": (model.model.language_model, model.lm_head),
        }

    def save(self, model, folder, format=""):
        """Every tensor keeps the type that the opened checkpoint stores it in where that loses nothing, as it does for
        all that was not trained; what training changed stays in the type it was trained in.
        """
        format = format or self.format
        if format != self.format and self.config.use_low_frame_rate == (format == "hf"):
            log.warning(UNLIKE[format], self.folder)
        stored = LAYOUTS[self.format].dtypes(self.folder, self.config, self.baggage)
        state = {name: storage.narrow(tensor.cpu(), stored.get(name)) for name, tensor in model.state_dict().items()}
        if self.config.tie_word_embeddings:
            state.pop("lm_head.weight")
        LAYOUTS[format].write(folder, model, state, self.tokenizer, self.baggage)
        if format == self.format == "hf":
            hf.copy_processor(self.folder, folder)

    def fields(self, generating):
        return super().fields(generating) | {"input_features": Pad(0.0), "input_features_mask": Pad(0)}

    def encode(self, wave, prompt, answer, augment):
        import torch

        mel = fbank(wave, self.rate)
        features = torch.from_numpy(stack_frames(augment.mel(mel) if augment else mel))  # (T, 560)
        longest = self.config.audio_config.max_position_embeddings - 1
        if len(features) > longest:
            raise UserError(
                f"{len(wave) / self.rate:.1f} s are {len(features)} frames of 60 ms, and the encoder takes {longest} "
                f"({longest * 0.06:.0f} s); cut the audio: by Kaldi's segments to train, by ++max_segment to decode"
            )
        frames = self._heard(len(features))
        row = {"input_features": features, "input_features_mask": torch.ones(len(features), dtype=torch.long)}
        return row | self.chat(prompt, frames, answer, self.config.sys_prompt, self.config.do_think)

    def listen(self, model, batch):
        mask = batch["input_features_mask"]
        encoded = model.model.audio_tower(batch["input_features"], mask).last_hidden_state
        return model.model.multi_modal_projector(encoded, mask), self._heard(mask.sum(1))

    def _heard(self, frames):
        """How many of its frames of 60 ms, an int or a tensor of them, the LLM hears."""
        return heard(frames) if self.config.use_low_frame_rate else frames

    def llm(self, model):
        return model
