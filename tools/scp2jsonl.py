"""Kaldi's wav.scp and text to a ChatML JSONL: ++scp_file, ++transcript_file, ++jsonl_file. Or tar shards: ++shards.

Joins by id, in the order of the scp (or segments). Bad utterances go to <jsonl_file>.bad; over ++max_bad, no JSONL.
Killed, the same command goes on where it stopped.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from speechllm import cli
from speechllm.errors import Rejects, UserError
from speechllm.processes import WORKERS


@dataclass
class Options:
    jsonl_file: str
    """What to write."""
    scp_file: str = ""
    """Kaldi wav.scp: `utterance path`; also URLs, ark:offset, shard.tar:offset and pipes."""
    transcript_file: str = ""
    """Kaldi text: `utterance words`."""
    segments_file: str = ""
    """Kaldi segments: `utterance recording start end`; scp_file then lists recordings."""
    shards: str = ""
    """Tars of key.wav (flac, mp3, ogg) and key.txt (json), in place of the tables: data/x-{000..009}.tar, x-*.tar."""
    hotwords_file: str = ""
    """Words that the model is told to expect: `utterance word,word ...`."""
    tokenizer: str = "Qwen/Qwen3-0.6B"
    """Counts text_length: a hub name (ModelScope, then Hugging Face) or a folder."""
    prompt: str = ""
    """Text before the audio; empty: 语音转写： and what language and itn make of it."""
    language: str = ""
    """Language of the text: zh, en, ja, or a Chinese name such as 韩文; empty: the language spoken."""
    itn: bool = True
    """Ask for figures and dates as they are written, not as they are spoken."""
    max_workers: int = WORKERS
    """Processes that read audio (default: one per core, at most 16). Each asks 8 URLs at a time."""
    max_bad: int = 0
    """Utterances that may be left out."""
    allow_pipes: bool = False
    """Run the shell commands that end in | in place of a path, as Kaldi does."""


def main(options: Options) -> None:
    from speechllm.formats import build, contract, shards
    from speechllm.formats.prompts import asr_prompt
    from speechllm.formats.tokens import counter
    from speechllm.sample import Prompt

    if options.prompt and (options.language or not options.itn):
        raise UserError("++prompt says all that is asked; leave out ++language and ++itn, or ++prompt")
    prompt = Prompt(before=options.prompt) if options.prompt else asr_prompt(options.language, options.itn)
    tables = [options.scp_file, options.transcript_file, options.segments_file]
    if bool(options.shards) == any(tables) or bool(options.scp_file) != bool(options.transcript_file):
        raise UserError("++scp_file and ++transcript_file are needed, or ++shards in place of tables")
    rejects = Rejects(f"{options.jsonl_file}.bad", options.max_bad)
    if options.shards:
        files = shards.expand(options.shards)
        utterances = shards.join(files, options.hotwords_file, options.max_workers, rejects.add)
    else:
        files = tables
        utterances = contract.join(*tables, hotwords=options.hotwords_file, on_fault=rejects.add)
    make = build.row_maker(prompt, counter(options.tokenizer), options.allow_pipes)
    same = build.made_of([*files, options.hotwords_file], prompt, options.tokenizer, options.allow_pipes)
    with build.Part(f"{options.jsonl_file}.part", same, rejects) as part:
        build.write_rows(utterances, make, part, options.jsonl_file, options.max_workers)


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
