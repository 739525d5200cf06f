"""Kaldi's wav.scp and text to a ChatML JSONL: ++scp_file, ++transcript_file, ++jsonl_file.

Joins by id, in the order of the scp (or segments). Bad utterances go to <jsonl_file>.bad; over ++max_bad, no JSONL.
"""

import itertools
import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from speechllm import cli
from speechllm.errors import Rejects, UserError

BLOCK = 1024  # texts tokenised at a time
log = logging.getLogger("speechllm")


@dataclass
class Options:
    scp_file: str
    """Kaldi wav.scp: `utterance path`; also URLs, ark:offset and pipes."""
    transcript_file: str
    """Kaldi text: `utterance words`."""
    jsonl_file: str
    """What to write."""
    segments_file: str = ""
    """Kaldi segments: `utterance recording start end`; scp_file then lists recordings."""
    tokenizer: str = "Qwen/Qwen3-0.6B"
    """Counts text_length: a hub name (ModelScope, then Hugging Face) or a folder."""
    prompt: str = ""
    """Text before the audio; empty: 语音转写： and what language and itn make of it."""
    language: str = ""
    """Language of the text: zh, en, ja, or a Chinese name such as 韩文; empty: the language spoken."""
    itn: bool = True
    """Ask for figures and dates as they are written, not as they are spoken."""
    max_workers: int = 4
    """Threads that read audio headers; more help where files are far away."""
    max_bad: int = 0
    """Utterances that may be left out."""
    allow_pipes: bool = False
    """Run the shell commands that end in | in place of a path, as Kaldi does."""


def main(options: Options) -> None:
    from tqdm import tqdm

    from speechllm.files import atomic_write
    from speechllm.formats import contract
    from speechllm.formats.chatml import to_row
    from speechllm.formats.prompts import asr_prompt
    from speechllm.formats.tokens import counter
    from speechllm.sample import Prompt, Sample, speech_length

    if options.prompt and (options.language or not options.itn):
        raise UserError("++prompt says all that is asked; leave out ++language and ++itn, or ++prompt")
    prompt = Prompt(before=options.prompt) if options.prompt else asr_prompt(options.language, options.itn)
    rejects = Rejects(f"{options.jsonl_file}.bad", options.max_bad)
    utterances = contract.join(options.scp_file, options.transcript_file, options.segments_file, rejects.add)
    count, rows, seconds = counter(options.tokenizer), 0, 0.0
    good = contract.measured(utterances, options.max_workers, options.allow_pipes, on_fault=rejects.add)
    good = iter(tqdm(good, total=len(utterances), unit="utt", disable=None))
    with atomic_write(options.jsonl_file) as file:
        while block := list(itertools.islice(good, BLOCK)):
            for (one, length), tokens in zip(block, count([one.text for one, _ in block]), strict=True):
                sample = Sample(one.key, one.clip, prompt, one.text, speech_length(length), tokens, one.where)
                file.write(json.dumps(to_row(sample), ensure_ascii=False) + "\n")
                rows, seconds = rows + 1, seconds + length
        rejects.close()  # raises where too many are bad, and the JSONL does not land
        if not rows:
            raise UserError(f"{options.scp_file}: no utterance with audio and text; see {rejects.path}")
    log.info("%s: %d utterances, %.2f h", options.jsonl_file, rows, seconds / 3600)


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
