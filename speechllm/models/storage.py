"""Checkpoints of transformers: opened whole, in float32; each tensor is written in the type that it came in."""

from __future__ import annotations

import glob
import os
from typing import Any

from speechllm.errors import UserError


def load(kind: Any, source: str | None, folder: str, **options: Any) -> Any:
    """A model in float32, in evaluation mode.

    Args:
        kind: transformers' class.
        source: where its ``from_pretrained`` finds the weights.
        folder: the checkpoint's, for messages.
        options: further ones of ``from_pretrained``.

    Raises:
        UserError: a tensor is missing, left over or of another shape.
    """
    model, report = kind.from_pretrained(
        source,
        dtype="float32",
        # Without an explicit implementation Fun-ASR-Nano's adaptor gets no mask and attends to padding (5.23.0).
        attn_implementation="sdpa",
        ignore_mismatched_sizes=True,  # they are in the report
        output_loading_info=True,
        **options,
    )
    wrong = {name: sorted(keys) for name, keys in report.items() if keys}
    if wrong:
        raise UserError(f"{folder}: the weights do not fit the model: {wrong}")
    return model.eval()


def dtypes(folder: str) -> dict:
    """The type that each tensor of a transformers checkpoint is stored in."""
    import torch
    from safetensors import safe_open

    kinds = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    found = {}
    for path in glob.glob(os.path.join(glob.escape(folder), "model*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= {name: kinds[file.get_slice(name).get_dtype()] for name in file.keys()}  # noqa: SIM118
    return found


def narrow(tensor: Any, dtype: Any) -> Any:
    """The tensor in ``dtype`` where that loses nothing: all that was not trained. None: as it is."""
    if dtype is None or dtype == tensor.dtype:
        return tensor
    found = tensor.to(dtype)
    return found if found.to(tensor.dtype).equal(tensor) else tensor
