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
from speechllm.models.base import Family, Generates
from speechllm.models.fun_asr_nano import hf, native
from speechllm.models.fun_asr_nano.config import AUDIO_TOKEN, RUN, from_transformers
from speechllm.models.fun_asr_nano.features import fbank, heard, stack_frames

log = logging.getLogger("speechllm")

IGNORED = -100  # a label that bears no loss
LAYOUTS = {"hf": hf, "funasr": native}
UNLIKE = {
    "hf": "%s: this model hears the first T/8 of an audio's T frames. This package goes on so (use_low_frame_rate in "
    "config.json); plain transformers does not know that key, gives the LLM all frames, and will read worse",
    "funasr": "%s: this model hears all frames of an audio. This package and funasr.AutoModel go on so "
    "(use_low_frame_rate: false in config.yaml); upstream's trainer ignores that key and takes the first T/8",
}


class FunAsrNano(Family, Generates):
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
        self.config, self.tokenizer, found = LAYOUTS[self.format].open_folder(folder)
        self.baggage = found or from_transformers(self.config)
        self.end = self.tokenizer.convert_tokens_to_ids("<|im_end|>")

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
        # Without an explicit implementation the adaptor's mask is None and it attends to padding (5.23.0).
        model, report = FunAsrNanoForConditionalGeneration.from_pretrained(
            source,
            config=self.config,
            state_dict=state,
            attn_implementation="sdpa",
            dtype="float32",
            ignore_mismatched_sizes=True,  # they are in the report
            output_loading_info=True,
        )
        wrong = {name: sorted(keys) for name, keys in report.items() if keys}
        if wrong:
            raise UserError(f"{self.folder}: the weights do not fit the model: {wrong}")
        return model.eval()

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
        state = {name: _narrow(tensor.cpu(), stored.get(name)) for name, tensor in model.state_dict().items()}
        if self.config.tie_word_embeddings:
            state.pop("lm_head.weight")
        LAYOUTS[format].write(folder, model, state, self.tokenizer, self.baggage)
        if format == self.format == "hf":
            hf.copy_processor(self.folder, folder)

    def fields(self, generating):
        side = "left" if generating else "right"
        text = {"input_ids": Pad(self.tokenizer.pad_token_id, side), "attention_mask": Pad(0, side)}
        audio = {"input_features": Pad(0.0), "input_features_mask": Pad(0)}
        return text | audio | {"labels": Pad(IGNORED, side)}

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
        frames = heard(len(features)) if self.config.use_low_frame_rate else len(features)
        system = f"<|im_start|>system\n{prompt.system}<|im_end|>\n" if self.config.sys_prompt else ""
        think = "" if self.config.do_think else "<think>\n\n</think>\n\n"
        before = self._ids(f"{system}<|im_start|>user\n{prompt.before}")
        after = self._ids(f"{prompt.after}<|im_end|>\n<|im_start|>assistant\n{think}")
        ids = [*before, *[self.config.audio_token_id] * frames, *after]
        row = {"input_features": features, "input_features_mask": torch.ones(len(features), dtype=torch.long)}
        if answer is not None:
            target = [*self._ids(answer), self.end]
            row["labels"] = torch.tensor([IGNORED] * len(ids) + target)
            ids += target
        return row | {"input_ids": torch.tensor(ids), "attention_mask": torch.ones(len(ids), dtype=torch.long)}

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def embed(self, model, batch):
        """Embeddings (B, L, D) of text and audio: a row's first adaptor frames, as many as it has audio positions."""
        import torch

        core, mask = model.model, batch["input_features_mask"]
        text = core.get_input_embeddings()(batch["input_ids"])
        encoded = core.audio_tower(batch["input_features"], mask).last_hidden_state
        frames = core.multi_modal_projector(encoded, mask)  # (B, T, D)
        places = batch["input_ids"] == self.config.audio_token_id
        first = torch.arange(frames.shape[1], device=frames.device) < places.sum(1, keepdim=True)
        return text.masked_scatter(places[..., None], frames[first].to(text.dtype))

    def hidden(self, model, batch):
        inputs = {"inputs_embeds": self.embed(model, batch), "attention_mask": batch["attention_mask"]}
        return model.model(**inputs, use_cache=False).last_hidden_state

    def head(self, model):
        return model.lm_head

    def generate(self, model, batch, max_new_tokens):
        made = model.generate(
            inputs_embeds=self.embed(model, batch),
            attention_mask=batch["attention_mask"],
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=self.end,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        texts = self.tokenizer.batch_decode(made, skip_special_tokens=True)
        ended = (made == self.end).any(dim=1).tolist()
        return [{"text": text.strip(), "truncated": not end} for text, end in zip(texts, ended, strict=True)]


def _narrow(tensor, dtype):
    """The tensor in ``dtype`` where that loses nothing."""
    if dtype is None or dtype == tensor.dtype:
        return tensor
    narrow = tensor.to(dtype)
    return narrow if narrow.to(tensor.dtype).equal(tensor) else tensor
