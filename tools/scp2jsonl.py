"""A ChatML JSONL, ++jsonl_file, from Kaldi's ++scp_file and ++transcript_file, from ++shards or from ++conversations.

In the order of the scp, or segments. Bad utterances go to <jsonl_file>.bad. After a kill, the same command goes on.
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
    conversations: str = ""
    """JSON list or JSONL of conversations, in place of the tables; each row brings its prompt."""
    hotwords_file: str = ""
    """Words that the model is told to expect: `utterance word,word ...`."""
    tokenizer: str = "Qwen/Qwen3-0.6B"
    """Counts text_length: a hub name (ModelScope, then Hugging Face) or a folder."""
    prompt: str = ""
    """Text before the audio, or around it: `<audio>What is said?`; empty: 语音转写： with what language and itn add."""
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
    from speechllm.formats import build, contract, conversations, shards
    from speechllm.formats.prompts import asked
    from speechllm.formats.tokens import counter

    if options.conversations and (options.prompt or options.language or not options.itn or options.hotwords_file):
        raise UserError("++conversations bring their prompts: leave out ++prompt, ++language, ++itn, ++hotwords_file")
    prompt = asked(options.prompt, options.language, options.itn)
    tables = [options.scp_file, options.transcript_file, options.segments_file]
    kinds = [any(tables), bool(options.shards), bool(options.conversations)]
    if sum(kinds) != 1 or bool(options.scp_file) != bool(options.transcript_file):
        raise UserError(
            "++scp_file and ++transcript_file are needed, or ++shards in place of tables, or ++conversations"
        )
    rejects = Rejects(f"{options.jsonl_file}.bad", options.max_bad)
    if options.shards:
        files = shards.expand(options.shards)
        utterances = shards.join(files, options.hotwords_file, options.max_workers, rejects.add)
    elif options.conversations:
        files = [options.conversations]
        utterances = conversations.join(options.conversations, rejects.add)
    else:
        files = tables
        utterances = contract.join(*tables, hotwords=options.hotwords_file, on_fault=rejects.add)
    make = build.row_maker(prompt, counter(options.tokenizer), options.allow_pipes)
    same = build.made_of([*files, options.hotwords_file], prompt, options.tokenizer, options.allow_pipes)
    with build.Part(f"{options.jsonl_file}.part", same, rejects) as part:
        build.write_rows(utterances, make, part, options.jsonl_file, options.max_workers)


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
