"""Make a tiny random model of a real architecture, its tokenizer trained on the given text. Its scores mean nothing."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from speechllm import cli
from speechllm.errors import UserError


@dataclass
class Options:
    output_dir: str
    """Folder of the new checkpoint."""
    text_files: list[str]
    """Kaldi text files to train the tokenizer on."""
    sizes: dict = field(default_factory=dict)
    """What differs from the architecture's default config; usually from --config conf/tiny_model.yaml."""
    prompts: list[str] = field(default_factory=list)
    """Further texts of the chat that are to be short in tokens."""
    family: str = "fun_asr_nano"
    vocab_size: int = 600
    """Tokens, 256 bytes and the special ones among them."""
    seed: int = 0
    format: str = ""
    """Layout of the checkpoint, one of the family's formats; empty: its usual one. Fun-ASR-Nano: hf, funasr."""


def main(options: Options) -> None:
    from transformers import set_seed

    from speechllm.formats.kaldi import read_text
    from speechllm.models import FAMILIES
    from speechllm.models.tiny import train_tokenizer
    from speechllm.sample import Prompt

    if options.family not in FAMILIES:
        raise UserError(f"unknown family {options.family}; there are: {', '.join(FAMILIES)}")
    family = FAMILIES[options.family]
    if options.format not in ("", *family.formats):
        raise UserError(f"{family.name} is not written as {options.format}; formats: {', '.join(family.formats)}")
    texts = [text for path in options.text_files for text in read_text(path).values()]
    prompt = Prompt()
    texts += ["system user assistant", prompt.system, prompt.before, *options.prompts] * 100
    tokenizer = train_tokenizer(texts, options.vocab_size, family.special_tokens)
    set_seed(options.seed)
    family.create(options.sizes, tokenizer, options.output_dir, options.format or family.formats[0])
    print(f"{options.output_dir}: a random {options.family} model; its tokenizer has {len(tokenizer)} tokens")


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
