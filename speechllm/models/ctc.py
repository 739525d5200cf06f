"""The CTC head that a model may have on its adaptor: phonemes from the audio alone (Graves et al., 2006).

Class 0 is the blank, then come the phonemes in the order of their token ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

from speechllm.errors import UserError

if TYPE_CHECKING:
    import torch


def labels(symbols: Sequence[str], inventory: Sequence[str], frames: int) -> list[int]:
    """Classes of an answer's phonemes.

    Args:
        frames: vectors of audio that there are.

    Raises:
        UserError: more phonemes than CTC can put into so many vectors; its loss would be infinite.
    """
    classes = {symbol: number for number, symbol in enumerate(inventory, 1)}
    found = [classes[symbol] for symbol in symbols]
    needed = len(found) + sum(a == b for a, b in pairwise(found))  # a blank stands between equals
    if needed > frames:
        raise UserError(
            f"{len(found)} phonemes in {frames} vectors of audio, CTC needs {needed}; check that the text is of this "
            "audio, or compose the model with a lower encoder_projector_ds_rate"
        )
    return found


def texts(logits: torch.Tensor, lengths: torch.Tensor, inventory: Sequence[str]) -> list[str]:
    """The best path of each row, repetitions and blanks taken out.

    Args:
        logits: (B, T, classes).
        lengths: (B,) vectors of each row.
    """
    paths = [path[:length] for path, length in zip(logits.argmax(-1).tolist(), lengths.tolist(), strict=True)]
    return [" ".join(inventory[best - 1] for best, _ in groupby(path) if best) for path in paths]
