"""Extend a tokenizer by the phonemes of the data, one token each: --data, --base_tokenizer, --save_dir.

The model whose tokenizer it is gets its new rows from tools/compose_model.py.
"""

import logging
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from speechllm import cli

log = logging.getLogger("speechllm")


@dataclass
class Options:
    data: str
    """Conversations (JSON, JSONL), ChatML JSONLs or Kaldi's text-phone; several with commas between them. Give all of
    train, dev and test."""
    base_tokenizer: str
    """The LLM's: a folder, or a hub name such as Qwen/Qwen3-0.6B. One that has phonemes keeps them, with their ids."""
    save_dir: str
    """Folder of the extended tokenizer, and of phonemes.txt with the counts."""
    marks: bool = False
    """Have <PH_START> and <PH_END> even if the data does not, for data to come in which text and phonemes are mixed."""
    rare: int = 20
    """Warn about phonemes that the data has less often."""


def main(options: Options) -> None:
    from speechllm import vocabulary

    paths = options.data.split(",")
    inventory = vocabulary.collect(paths)
    counts = vocabulary.build(inventory, paths, options.base_tokenizer, options.save_dir, options.marks)
    order = sorted(counts, key=lambda symbol: (-counts[symbol], symbol))
    said = "  ".join(f"{symbol} {counts[symbol]}" for symbol in order)
    print(textwrap.fill(said, 100, break_long_words=False, break_on_hyphens=False))
    rare = [symbol for symbol in order if 0 < counts[symbol] < options.rare]
    if rare:
        log.warning("rare, fewer than %d in the data, so badly learnt: %s", options.rare, " ".join(rare))
    if alike := list(vocabulary.lookalikes(counts)):
        log.warning("%s; if they are one phoneme, write it in one way", "; ".join(alike))
    marked = f", {inventory.marked} of them with marks" if inventory.marked else ""
    print(
        f"{options.save_dir}: {len(counts)} phonemes, {sum(counts.values())} in {inventory.answers} answers{marked}; "
        "each is one token, and every answer comes back as it was"
    )


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
