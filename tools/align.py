"""Align a set with a trained model: ++model_dir, ++jsonl_file or ++scp_file and ++transcript_file, ++output_file."""

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
class Options:
    output_file: str
    """JSONL with the model's times, to train on. The other formats land beside it, the raw rows in <name>_align/."""
    model_dir: str = "Qwen/Qwen3-ForcedAligner-0.6B"
    """A finished run, a folder or a hub name."""
    jsonl_file: str = ""
    """Rows with audio and text; times that they have are not looked at."""
    scp_file: str = ""
    """Kaldi wav.scp, in place of jsonl_file."""
    transcript_file: str = ""
    """Kaldi text."""
    segments_file: str = ""
    """Kaldi segments of the recordings in scp_file."""
    language: str = ""
    """Of texts that bring none, such as English; Japanese and Korean decide how words are found (extra align)."""
    formats: list[str] | str = "jsonl"
    """Of jsonl,textgrid,ctm,srt: a TextGrid and an SRT are a file per utterance, in <name>_textgrid/, <name>_srt/."""
    min_confidence: float = 0.0
    """Keep only utterances whose words' confidence is so much on average; <output_file>.low lists the others."""
    boundaries: Literal["expectation", "argmax"] = "expectation"
    """The expectation over the classes around the best one, or the best one as it is."""
    zero_length: bool = False
    """Let words last 0 s where the model hears it so; or each lasts 20 ms at least."""
    batch_size: int = 12000
    """Budget of a batch in frames of 10 ms: longest times rows."""
    max_bad: int = 0
    """Utterances that may fail; each is named in <output_file>.bad."""
    device: str = ""
    """cpu, cuda, cuda:1, ...; empty: the first GPU, or the CPU."""
    hub: Literal["ms", "hf"] = "ms"
    """Where names of models are looked up: ModelScope or Hugging Face."""
    allow_pipes: bool = False
    """Run the shell commands that end in | in place of a path, as Kaldi does."""


def main(options: Options) -> None:
    if bool(options.jsonl_file) == bool(options.scp_file) or bool(options.scp_file) != bool(options.transcript_file):
        raise UserError("++jsonl_file is needed, or ++scp_file and ++transcript_file")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the loader's workers are forked
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait take no core from the loader's workers
    from speechllm import pseudo_labels
    from speechllm.checkpoint import open_model
    from speechllm.formats.jsonl import JsonlFile

    formats = pseudo_labels.formats_of(options.formats, options.zero_length)
    rejects = Rejects(f"{options.output_file}.bad", options.max_bad)
    if options.jsonl_file:
        data = JsonlFile(options.jsonl_file)
    else:
        tables = (options.scp_file, options.transcript_file, options.segments_file)
        data = pseudo_labels.from_tables(*tables, options.allow_pipes, rejects.add)
    data = pseudo_labels.Spoken(data, options.language)
    opened = open_model(options.model_dir, options.hub)
    how = {name: getattr(options, name) for name in ("boundaries", "zero_length", "batch_size", "allow_pipes")}
    folder = f"{os.path.splitext(options.output_file)[0]}_align"
    made = pseudo_labels.align(opened, data, DecodeOptions(**how), folder, options.device)
    pseudo_labels.write(data, made, options.output_file, formats, options.min_confidence, rejects, options.allow_pipes)


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
