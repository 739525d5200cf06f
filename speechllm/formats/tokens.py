"""How many tokens a text has."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable

from speechllm.errors import UserError
from speechllm.phonemes import Phonemes

FILES = ["tokenizer*", "vocab.json", "merges.txt", "config.json"]  # of a checkpoint: all but its weights
INSIDE = [f"*/{name}" for name in FILES]  # FunASR's layout has the LLM's in a folder of its own


def counter(tokenizer: str) -> Callable[[list[str]], list[int | UserError]]:
    """A function that gives the tokens of each of many texts, special tokens left out, or why one cannot be told.

    Of a tokenizer that was extended with phonemes, a text is what speechllm/phonemes.py makes of it.

    Args:
        tokenizer: a folder, or a hub name, looked up on ModelScope, then on Hugging Face.

    Raises:
        UserError: no such tokenizer.
    """
    folder = find(tokenizer)
    inside = sorted(glob.glob(os.path.join(glob.escape(folder), "*", "tokenizer.json")))
    path = os.path.join(folder, "tokenizer.json")
    if not os.path.exists(path) and inside:
        path = inside[0]
    if os.path.exists(path):  # loads in a fraction of the time that transformers takes to import
        from tokenizers import Tokenizer

        fast = Tokenizer.from_file(path)
        fast.no_truncation()
        fast.no_padding()
        if not (phonemes := Phonemes(fast)).ids:
            return lambda texts: [len(found) for found in fast.encode_batch_fast(texts, add_special_tokens=False)]
    else:
        from transformers import AutoTokenizer

        phonemes = Phonemes(AutoTokenizer.from_pretrained(folder))
    return lambda texts: [_length(phonemes, text) for text in texts]


def _length(phonemes: Phonemes, text: str) -> int | UserError:
    try:
        return len(phonemes.encode(text))
    except UserError as error:
        return error


def find(tokenizer: str) -> str:
    """The folder of a tokenizer, by its path or its hub name. Raises UserError: there is none."""
    from speechllm.hub import resolve

    tried = []
    for hub in ("ms", "hf"):
        try:
            return resolve(tokenizer, hub, FILES + INSIDE)
        except UserError as error:
            tried.append(error)
    raise UserError(
        f"{tokenizer}: no such folder here, and neither ModelScope nor Hugging Face gives it; "
        "give a folder with a tokenizer, such as a model's (++tokenizer=DIR, ++base_tokenizer=DIR)"
    ) from tried[-1]
