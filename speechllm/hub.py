"""Checkpoints by name: a local folder, ModelScope or Hugging Face."""

from __future__ import annotations

import os

from speechllm.errors import UserError


def resolve(name: str, hub: str = "ms", patterns: list[str] | None = None) -> str:
    """The folder of a checkpoint.

    Args:
        name: a folder, or ``owner/name`` on the hub, fetched once into the hub's own cache.
        hub: ``ms`` (ModelScope) or ``hf`` (Hugging Face).
        patterns: file name patterns, when only some of the files are wanted.

    Raises:
        UserError: no such folder, and the hub does not give it.
    """
    if os.path.isdir(name):
        return name
    if name.count("/") != 1 or os.path.isdir(os.path.dirname(name)):  # such as exp/x or ./x
        raise UserError(f"{name}: no such folder, and not a hub name of the form owner/name")
    try:
        if hub == "ms":
            from modelscope import snapshot_download
        else:
            from huggingface_hub import snapshot_download
        return snapshot_download(name, allow_patterns=patterns)
    except Exception as error:  # each hub's client raises its own kinds
        other = "hf" if hub == "ms" else "ms"
        raise UserError(
            f"{name}: no such folder here, and the hub ({hub}) does not give it: {' '.join(str(error).split())[:300]}. "
            f"Try ++hub={other}, or download it by hand and give the folder"
        ) from error
