"""Decode a set with a trained model: ++model_dir, ++scp_file or ++jsonl_file, ++output_file."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from speechllm import cli
from speechllm.config import DecodeOptions
from speechllm.errors import Rejects, UserError


@dataclass
class Options(DecodeOptions):
    model_dir: str = "FunAudioLLM/Fun-ASR-Nano-2512-hf"
    """A finished run, a folder or a hub name."""
    hub: Literal["ms", "hf"] = "ms"
    """Where a hub name is looked up: ModelScope or Hugging Face."""
    scp_file: str = ""
    """Kaldi wav.scp; asked with the prompt that the model was trained with."""
    jsonl_file: str = ""
    """JSONL in place of scp_file; each row brings its prompt."""
    segments_file: str = ""
    """Kaldi segments of the recordings in scp_file."""
    output_file: str = ""
    """`utt<TAB>text` per row; the same name with .jsonl, and decode.json, land beside it."""
    max_bad: int = 0
    """Utterances that may fail; each is named in <output_file>.bad, and its text is empty."""
    device: str = ""
    """cpu, cuda, cuda:1, ...; empty: the first GPU, or the CPU."""


def main(options: Options) -> None:
    if not options.output_file or bool(options.scp_file) == bool(options.jsonl_file):
        raise UserError("++output_file and one of ++scp_file and ++jsonl_file are needed")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the loader's workers are forked
    import torch

    from speechllm.checkpoint import open_model
    from speechllm.decode import decode_set
    from speechllm.formats.chatml import ChatmlFile
    from speechllm.formats.kaldi import samples

    opened = open_model(options.model_dir, options.hub)
    options.max_new_tokens = options.max_new_tokens or opened.max_new_tokens
    opened.model.to(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if options.jsonl_file:
        data = list(ChatmlFile(options.jsonl_file))
    else:
        data = samples(options.scp_file, options.segments_file or None, opened.prompt, options.allow_pipes)
    rows = decode_set(opened, data, [sample.speech_length for sample in data], options, options.output_file)
    rejects = Rejects(f"{options.output_file}.bad", options.max_bad)
    for sample, row in zip(data, rows, strict=True):
        if "error" in row:
            rejects.add(sample.key, sample.where, row["error"])
    rejects.close()


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
