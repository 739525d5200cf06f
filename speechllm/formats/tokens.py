"""How many tokens a text has."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable

from speechllm.errors import UserError

FILES = ["tokenizer*", "vocab.json", "merges.txt", "config.json"]  # of a checkpoint: all but its weights
INSIDE = [f"*/{name}" for name in FILES]  # FunASR's layout has the LLM's in a folder of its own


def counter(tokenizer: str) -> Callable[[list[str]], list[int]]:
    """A function that gives the tokens of each of many texts, special tokens left out.

    Args:
        tokenizer: a folder, or a hub name, looked up on ModelScope, then on Hugging Face.

    Raises:
        UserError: no such tokenizer.
    """
    folder = _folder(tokenizer)
    inside = sorted(glob.glob(os.path.join(glob.escape(folder), "*", "tokenizer.json")))
    path = os.path.join(folder, "tokenizer.json")
    if not os.path.exists(path) and inside:
        path = inside[0]
    if os.path.exists(path):  # loads in a fraction of the time that transformers takes to import
        from tokenizers import Tokenizer

        fast = Tokenizer.from_file(path)
        fast.no_truncation()
        fast.no_padding()
        return lambda texts: [len(found) for found in fast.encode_batch_fast(texts, add_special_tokens=False)]
    from transformers import AutoTokenizer

    slow = AutoTokenizer.from_pretrained(folder)
    return lambda texts: [len(ids) for ids in slow(texts, add_special_tokens=False)["input_ids"]]


def _folder(tokenizer: str) -> str:
    from speechllm.hub import resolve

    tried = []
    for hub in ("ms", "hf"):
        try:
            return resolve(tokenizer, hub, FILES + INSIDE)
        except UserError as error:
            tried.append(error)
    raise UserError(
        f"{tokenizer}: no such folder here, and neither ModelScope nor Hugging Face gives it; "
        "give a folder with a tokenizer, such as a model's, with ++tokenizer=DIR"
    ) from tried[-1]
