"""Fun-ASR-Nano: SenseVoice encoder, Transformer adaptor, Qwen3, on transformers' own class.

B rows, T stacked frames of 60 ms, L positions of text and audio, D width of the LLM.
Facts: Fun-ASR's model.py (prompt layout, front end) and transformers' FunAsrNano (weights, masks).
"""

from __future__ import annotations

import os
import shutil

import numpy as np

from speechllm.batching import Pad
from speechllm.errors import UserError
from speechllm.models.base import Family, Generates

MEL_BINS, STACK, SHIFT = 80, 7, 6
IGNORED = -100  # a label that bears no loss
WEIGHTS = (".safetensors", ".bin", ".pt", ".index.json")


def fbank(wave: np.ndarray, rate: int) -> np.ndarray:
    """Kaldi log-mel filterbank (T, 80) as Fun-ASR's front end: 2^15 scale, Hamming, 25/10 ms, no dither."""
    import kaldi_native_fbank as knf

    options = knf.FbankOptions()
    options.frame_opts.samp_freq = rate
    options.frame_opts.window_type = "hamming"
    options.frame_opts.dither = 0.0
    options.mel_opts.num_bins = MEL_BINS
    options.energy_floor = 0.0
    computer = knf.OnlineFbank(options)
    computer.accept_waveform(rate, (wave * 32768.0).tolist())  # a list is converted faster than an array
    computer.input_finished()
    frames = [computer.get_frame(i) for i in range(computer.num_frames_ready)]
    return np.stack(frames) if frames else np.zeros((0, MEL_BINS), np.float32)


def stack_frames(mel: np.ndarray) -> np.ndarray:
    """Low frame rate: 7 frames side by side, every 6th (T, 80) -> (ceil(T / 6), 560); edge frames are repeated."""
    count = -(-len(mel) // SHIFT)
    left = (STACK - 1) // 2
    right = max((count - 1) * SHIFT + STACK - left - len(mel), 0)
    padded = np.concatenate([mel[:1].repeat(left, 0), mel, mel[-1:].repeat(right, 0)])
    return np.concatenate([padded[k : k + (count - 1) * SHIFT + 1 : SHIFT] for k in range(STACK)], axis=1)


class FunAsrNano(Family, Generates):
    name = "fun_asr_nano"

    def __init__(self, folder: str):
        super().__init__(folder)
        from transformers import AutoConfig, AutoTokenizer

        try:
            self.config = AutoConfig.from_pretrained(folder)
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: not a Fun-ASR-Nano checkpoint in the -hf layout: {error}") from error
        if self.config.model_type != self.name:
            raise UserError(f"{folder}: its config.json says {self.config.model_type}, not {self.name}")
        self.end = self.tokenizer.convert_tokens_to_ids("<|im_end|>")

    @classmethod
    def create(cls, sizes, tokenizer, folder):
        from transformers import FunAsrNanoConfig, FunAsrNanoForConditionalGeneration

        width = sizes["text_config"]["hidden_size"]
        sizes = sizes | {
            "audio_token_id": tokenizer.convert_tokens_to_ids("<|object_ref_start|>"),
            "text_config": sizes["text_config"] | {"model_type": "qwen3", "vocab_size": len(tokenizer)},
            "adaptor_config": sizes["adaptor_config"] | {"hidden_size": width, "intermediate_size": width // 4},
        }
        FunAsrNanoForConditionalGeneration(FunAsrNanoConfig(**sizes)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    def load(self):
        from transformers import FunAsrNanoForConditionalGeneration

        # Without an explicit implementation the adaptor's mask is None and it attends to padding (5.23.0).
        model, report = FunAsrNanoForConditionalGeneration.from_pretrained(
            self.folder, config=self.config, attn_implementation="sdpa", dtype="float32", output_loading_info=True
        )
        wrong = {name: sorted(keys) for name, keys in report.items() if keys}
        if wrong:
            raise UserError(f"{self.folder}: the weights do not fit the model: {wrong}")
        return model.eval()

    def parts(self, model):
        return {
            "audio_encoder": (model.model.audio_tower,),
            "audio_adaptor": (model.model.multi_modal_projector,),
            "llm": (model.model.language_model, model.lm_head),
        }

    def save(self, model, folder):
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        for name in os.listdir(self.folder):  # the processor's files, a licence: all that is not weights
            source, target = os.path.join(self.folder, name), os.path.join(folder, name)
            if os.path.isfile(source) and not os.path.exists(target) and not name.endswith(WEIGHTS):
                shutil.copy(source, target)

    def fields(self, generating):
        side = "left" if generating else "right"
        text = {"input_ids": Pad(self.tokenizer.pad_token_id, side), "attention_mask": Pad(0, side)}
        audio = {"input_features": Pad(0.0), "input_features_mask": Pad(0)}
        return text | audio | {"labels": Pad(IGNORED, side)}

    def encode(self, wave, prompt, answer, augment):
        import torch

        mel = fbank(wave, self.rate)
        features = torch.from_numpy(stack_frames(augment.mel(mel) if augment else mel))  # (T, 560)
        before = self._ids(f"<|im_start|>system\n{prompt.system}<|im_end|>\n<|im_start|>user\n{prompt.before}")
        after = self._ids(f"{prompt.after}<|im_end|>\n<|im_start|>assistant\n")
        ids = [*before, *[self.config.audio_token_id] * len(features), *after]
        row = {"input_features": features, "input_features_mask": torch.ones(len(features), dtype=torch.long)}
        if answer is not None:
            target = [*self._ids(answer), self.end]
            row["labels"] = torch.tensor([IGNORED] * len(ids) + target)
            ids += target
        return row | {"input_ids": torch.tensor(ids), "attention_mask": torch.ones(len(ids), dtype=torch.long)}

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def hidden(self, model, batch):
        inputs = {name: batch[name] for name in batch if name != "labels"}
        return model.model(**inputs, use_cache=False).last_hidden_state

    def head(self, model):
        return model.lm_head

    def generate(self, model, batch, max_new_tokens):
        made = model.generate(
            **batch,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=self.end,
            pad_token_id=self.tokenizer.pad_token_id,
        )[:, batch["input_ids"].shape[1] :]
        texts = self.tokenizer.batch_decode(made, skip_special_tokens=True)
        ended = (made == self.end).any(dim=1).tolist()
        return [{"text": text.strip(), "truncated": not end} for text, end in zip(texts, ended, strict=True)]
