"""A tokenizer for tests whose counts can be checked by eye."""

from pathlib import Path


def make_tokenizer(folder: Path) -> Path:
    """A byte-level BPE that knows only bytes, so that a text has as many tokens as bytes."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>"]
    made.train_from_iterator([], trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=special))
    # A start mark and a limit of length, which text_length must not see.
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made.enable_truncation(3)
    made.save(str(folder / "tokenizer.json"))
    return folder
