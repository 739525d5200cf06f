"""Decode a set with a trained model: ++model_dir, ++scp_file or ++jsonl_file, ++output_file. Or one ++audio_file."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from speechllm import cli
from speechllm.config import DecodeOptions
from speechllm.errors import Rejects, UserError


@dataclass
class Options(DecodeOptions):
    model_dir: str = "FunAudioLLM/Fun-ASR-Nano-2512"
    """A finished run, a folder or a hub name."""
    scp_file: str = ""
    """Kaldi wav.scp; asked with the prompt that the model was trained with."""
    jsonl_file: str = ""
    """JSONL in place of scp_file; each row brings its prompt."""
    audio_file: str = ""
    """One recording, in place of a set: what is heard is printed, with ++nbest best first."""
    prompt: str = ""
    """What it is asked, `<audio>` where the audio stands; empty, or without <audio>: as in the model's training."""
    segments_file: str = ""
    """Kaldi segments of the recordings in scp_file."""
    hotwords_file: str = ""
    """`utt word,word ...`: words that may occur in an utterance of scp_file, put into its prompt."""
    output_file: str = ""
    """`utt<TAB>text` per row; the same name with .jsonl, and decode.json, land beside it."""
    max_bad: int = 0
    """Utterances that may fail; each is named in <output_file>.bad, and its text is empty."""
    device: str = ""
    """cpu, cuda, cuda:1, ...; empty: the first GPU, or the CPU."""


def main(options: Options) -> None:
    given = [options.scp_file, options.jsonl_file, options.audio_file]
    if sum(map(bool, given)) != 1 or bool(options.output_file) == bool(options.audio_file):
        raise UserError("++output_file and one of ++scp_file and ++jsonl_file are needed, or ++audio_file alone")
    if not options.scp_file and (options.segments_file or options.hotwords_file):
        raise UserError("++segments_file and ++hotwords_file go with ++scp_file; a JSONL's rows have their own")
    if options.prompt and not options.audio_file:
        raise UserError("++prompt goes with ++audio_file; a set is asked as in training, a JSONL's rows as they say")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the loader's workers are forked
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait take no core from the loader's workers
    import torch

    from speechllm.checkpoint import open_model
    from speechllm.decode import decode_file, decode_set
    from speechllm.formats import kaldi
    from speechllm.formats.jsonl import JsonlFile

    hotwords = kaldi.read_hotwords(options.hotwords_file) if options.hotwords_file else {}
    opened = open_model(options.model_dir, options.hub)
    options.max_new_tokens = options.max_new_tokens or opened.max_new_tokens
    opened.model.to(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if options.audio_file:
        row = decode_file(opened, options.audio_file, options.prompt, options)
        print("\n".join(answer["text"] for answer in row.get("nbest", [row])))
        return
    if options.jsonl_file:
        data = JsonlFile(options.jsonl_file)
        lengths = data.speech_lengths
    else:
        segments = options.segments_file or None
        data = kaldi.samples(options.scp_file, segments, opened.prompt, options.allow_pipes, hotwords)
        lengths = [sample.speech_length for sample in data]
    rejects = Rejects(f"{options.output_file}.bad", options.max_bad)
    for sample, reason in decode_set(opened, data, lengths, options, options.output_file):
        rejects.add(sample.key, sample.where, reason)
    rejects.close()


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
