"""A native checkpoint's files beside its tensors: config.yaml, configuration.json and whatever these two name.

funasr 1.4.16 finds them so (download/download_model_from_hub.py): ``file_path_metas`` of configuration.json puts paths
below the folder over the values of config.yaml.
"""

from __future__ import annotations

import copy
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from speechllm.errors import UserError
from speechllm.files import write_json
from speechllm.models.fun_asr_nano.names import CTC

CONFIG, DESCRIPTION, WEIGHTS, KEPT = "config.yaml", "configuration.json", "model.pt", "ctc.safetensors"
# Keys that name a file or folder of the checkpoint, wherever in config.yaml they stand.
FILES = ("init_param_path", "vocab_path", "cmvn_file", "token_list", "bpemodel")
LLM, TOKENIZER = ("llm_conf", "init_param_path"), ("tokenizer_conf", "init_param_path")


def get(tree: dict, keys: tuple[str, ...], default: Any = None) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return default if tree is None else tree


def put(tree: dict, keys: tuple[str, ...], value: Any) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
    tree[keys[-1]] = value


def leaves(tree: dict, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*above, key))
        else:
            yield (*above, key), value


@dataclass
class Baggage:
    """All of a native checkpoint but the tensors of the model.

    Attributes:
        folder: where it was read; empty when it was made up.
        config: config.yaml.
        description: configuration.json.
        files: the files and folders that config.yaml names, by the key: (name in the checkpoint, path here).
    """

    folder: str
    config: dict
    description: dict
    files: dict[tuple[str, ...], tuple[str, str]]

    def llm(self) -> str:
        """Folder of the LLM's config and tokenizer. Raises UserError where it is not in the checkpoint."""
        if LLM not in self.files:
            raise UserError(
                f"{self.folder}: config.yaml says llm_conf.init_param_path: {get(self.config, LLM)}, and there is no "
                "such folder; put the LLM's config and tokenizer there, or name their folder in configuration.json "
                "under file_path_metas"
            )
        return self.files[LLM][1]

    def tokenizer(self) -> str:
        """Folder of the tokenizer: the LLM's, unless config.yaml names another."""
        return self.files[TOKENIZER][1] if TOKENIZER in self.files else self.llm()

    def weights(self) -> str:
        return os.path.join(self.folder, get(self.description, ("file_path_metas", "init_param"), WEIGHTS))

    def ctc(self) -> dict:
        """The tensors of the CTC head, if there is one."""
        from safetensors.torch import load_file

        if not self.folder:
            return {}
        kept = os.path.join(self.folder, KEPT)
        if os.path.isfile(kept):
            return load_file(kept)
        return {name: tensor for name, tensor in read_weights(self.weights()).items() if name.startswith(CTC)}


def read(folder: str) -> Baggage:
    """Read config.yaml and configuration.json; find what they name as funasr does, in the folder first.

    Raises:
        UserError: one of the two is broken.
    """
    found = []
    for name in (CONFIG, DESCRIPTION):
        path = os.path.join(folder, name)
        try:
            with open(path, encoding="utf-8") as file:
                found.append(yaml.safe_load(file))  # JSON is YAML
        except FileNotFoundError:
            found.append({})  # config.yaml is there, or this would not be called
        except yaml.YAMLError as error:
            raise UserError(f"{path}: {' '.join(str(error).split())}; correct it, or download it again") from error
        if not isinstance(found[-1], dict):
            raise UserError(f"{path}: expected keys and values; download it again")
    config, description = found
    files = {}
    for tree in (config, description.get("file_path_metas", {})):  # the second goes before the first
        for keys, value in leaves(tree):
            path = os.path.join(folder, value) if isinstance(value, str) else ""
            if keys[-1] in FILES and value and os.path.exists(path):
                name = os.path.normpath(value)
                outside = os.path.isabs(name) or name.startswith("..")
                files[keys] = (os.path.basename(name) if outside else name, path)
    return Baggage(folder, config, description, files)


def write_baggage(baggage: Baggage, folder: str) -> None:
    """Write config.yaml, configuration.json and the files they name, so that the folder can be moved."""
    config, description = copy.deepcopy(baggage.config), copy.deepcopy(baggage.description)
    for keys, value in leaves(baggage.config):
        if isinstance(value, str) and os.path.isabs(value):
            get(config, keys[:-1], config).pop(keys[-1])  # where it was trained; what matters is put back below
    metas = description.setdefault("file_path_metas", {})
    metas |= {"config": CONFIG, "init_param": WEIGHTS}
    for keys, (name, path) in baggage.files.items():
        target = os.path.join(folder, name)
        if os.path.isdir(path):
            ignore = shutil.ignore_patterns("*.safetensors", "*.bin", "*.index.json", ".*")
            shutil.copytree(path, target, ignore=ignore, dirs_exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.copy(path, target)
        put(metas, keys, name)
        if get(baggage.config, keys) is not None:
            put(config, keys, name)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, CONFIG), "w", encoding="utf-8") as file:
        yaml.safe_dump(config, file, sort_keys=False, allow_unicode=True)
    write_json(os.path.join(folder, DESCRIPTION), description)


def read_weights(path: str) -> dict:
    """The tensors of a ``model.pt``, left in the file until they are used. Nothing but tensors is unpickled.

    Raises:
        UserError: no such file, not a checkpoint, or one that holds more than tensors.
    """
    import torch

    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file, and configuration.json names no other weights; download them again")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        raise UserError(
            f"{path}: refused, since it holds more than tensors{f' ({named[1]})' if named else ''} and could run code; "
            "take the checkpoint from its publisher"
        ) from error
    except (RuntimeError, EOFError) as error:
        reason = str(error).split(". ")[0] or "it is empty"
        raise UserError(f"{path}: cannot be read: {reason}; download it again") from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path}: expected a dictionary of tensors, or one under state_dict; download it again")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}
