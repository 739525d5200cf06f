"""A tiny random model and a corpus of tones, for the tests of training and decoding. Their scores mean nothing."""

import base64
import json
from pathlib import Path

import numpy as np
import soundfile
import yaml

from speechllm.formats.chatml import to_row
from speechllm.sample import Clip, Prompt, Sample, speech_length

WORDS = ["one", "two", "three", "four", "five", "six"]
SIZES = {
    "audio_config": {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_timestamp_prediction_layers": 1,
    },
    "adaptor_config": {"num_attention_heads": 2, "num_hidden_layers": 1, "projector_hidden_size": 32},
    "text_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    },
}


def make_model(folder: Path, dropout: float = 0.0, format: str = "hf", spread: float = 0.02) -> Path:
    """A random checkpoint; with a ``spread`` of its weights of 0.3, what it says varies with what it hears."""
    from transformers import set_seed

    from speechllm.models.fun_asr_nano import FunAsrNano
    from speechllm.models.tiny import train_tokenizer

    sizes = SIZES | {"audio_config": SIZES["audio_config"] | {"hidden_dropout": dropout, "attention_dropout": dropout}}
    sizes |= {"initializer_range": spread, "text_config": SIZES["text_config"] | {"initializer_range": spread}}
    set_seed(7)
    FunAsrNano.create(sizes, train_tokenizer([*WORDS, Prompt().system] * 9, 400), str(folder), format)
    return folder


def add_ctc(folder: Path) -> Path:
    """Give a native checkpoint a CTC decoder, of upstream's own modules, and the tokenizer that it needs."""
    import torch
    from funasr.models.fun_asr_nano.ctc import CTC
    from funasr.models.llm_asr.adaptor import Transformer

    width, words = SIZES["audio_config"]["hidden_size"], 300
    sizes = {"downsample_rate": 1, "ffn_dim": 32, "llm_dim": width, "encoder_dim": width, "n_layer": 1}
    sizes |= {"attention_heads": 2}
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config |= {"ctc_decoder": "Transformer", "ctc_decoder_conf": sizes, "ctc_vocab_size": words}
    config["dataset_conf"] |= {"ctc_tokenizer": "SenseVoiceTokenizer", "ctc_tokenizer_conf": {"vocab_path": None}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    said = json.loads((folder / "configuration.json").read_text())
    said["file_path_metas"]["dataset_conf"] = {"ctc_tokenizer_conf": {"vocab_path": "multilingual.tiktoken"}}
    (folder / "configuration.json").write_text(json.dumps(said))
    ranks = (f"{base64.b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256))
    (folder / "multilingual.tiktoken").write_text("".join(ranks))
    state = torch.load(folder / "model.pt", weights_only=True)
    state["state_dict"] |= {f"ctc_decoder.{name}": tensor for name, tensor in Transformer(**sizes).state_dict().items()}
    state["state_dict"] |= {f"ctc.{name}": tensor for name, tensor in CTC(words, width).state_dict().items()}
    torch.save(state, folder / "model.pt")
    return folder


def make_corpus(folder: Path, count: int, seed: int = 0) -> Path:
    """Strings of 1 to 4 words, each word a tone of its own; returns the JSONL, beside wav.scp and text."""
    draw = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows, scp, text = [], [], []
    for i in range(count):
        words = draw.integers(0, len(WORDS), draw.integers(1, 5))
        wave = np.concatenate([_tone(300 * (word + 1), draw) for word in words])
        key, path = f"utt{i:03d}", folder / f"utt{i:03d}.wav"
        soundfile.write(path, wave, 16000)
        said = " ".join(WORDS[word] for word in words)
        length = speech_length(len(wave) / 16000)
        rows.append(to_row(Sample(key, Clip(str(path)), Prompt(), said, length, len(words), "")))
        scp.append(f"{key} {path}\n")
        text.append(f"{key} {said}\n")
    jsonl = folder / "rows.jsonl"
    jsonl.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    (folder / "wav.scp").write_text("".join(scp))
    (folder / "text").write_text("".join(text))
    return jsonl


def _tone(hertz: float, draw: np.random.Generator) -> np.ndarray:
    samples = np.arange(int(draw.integers(2400, 4800)))
    return 0.3 * np.sin(2 * np.pi * hertz * samples / 16000) + 0.01 * draw.standard_normal(len(samples))
