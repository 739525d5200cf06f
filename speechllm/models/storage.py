"""How a checkpoint stores its tensors: models are trained in float32, and each is written in the type it came in."""

from __future__ import annotations

import glob
import os
from typing import Any


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
