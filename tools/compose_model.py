"""Put a model together: ++encoder (Whisper), ++llm (Qwen3), ++tokenizer (with phonemes); or give ++model new phonemes.

The folder is a checkpoint like any other: ++model=FOLDER ++family=whisper_qwen3 trains it.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from speechllm import cli
from speechllm.errors import UserError


@dataclass
class Options:
    output_dir: str
    """Folder of the new checkpoint."""
    encoder: str = ""
    """Whisper, such as openai/whisper-large-v3: a hub name or a folder."""
    llm: str = ""
    """Qwen3, such as Qwen/Qwen3-4B: a hub name or a folder."""
    model: str = ""
    """In place of both: a model made here, or a run; it keeps its settings."""
    tokenizer: str = ""
    """Folder that tools/build_phoneme_vocab.py made; empty: the LLM's own tokens."""
    hub: Literal["ms", "hf"] = "ms"
    """Where names are looked up: ModelScope or Hugging Face."""
    encoder_projector_ds_rate: int = 1
    """Encoder frames of 20 ms that become one vector for the LLM."""
    max_audio_seconds: float = 30.0
    """Longer audio is refused in training, and cut into pieces by ++max_segment in decoding."""
    pad_audio: bool = False
    """Run the encoder on 30 s, as Whisper was trained, whatever the audio's length: slower."""
    ctc: bool = False
    """Add a CTC head for the phonemes on the projector; ++ctc_head_weight weighs its loss."""
    seed: int = 0
    """Of the random projector."""


def main(options: Options) -> None:
    if bool(options.model) == bool(options.encoder and options.llm):
        raise UserError("++encoder and ++llm are needed, or ++model in their place")
    if options.encoder_projector_ds_rate < 1:
        raise UserError(f"++encoder_projector_ds_rate is {options.encoder_projector_ds_rate}; give 1 or more")
    from transformers import set_seed

    from speechllm import hub
    from speechllm.models.whisper_qwen3.compose import make

    set_seed(options.seed)
    keys = ("encoder_projector_ds_rate", "max_audio_seconds", "pad_audio")
    settings = {} if options.model else {key: getattr(options, key) for key in keys}
    names = [options.model] if options.model else [options.encoder, options.llm]
    folders = [hub.resolve(name, options.hub) for name in names]
    new = make(options.output_dir, folders, options.tokenizer, options.ctc, **settings)
    print(f"{options.output_dir}: {len(new)} new token(s)")


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
