"""What is trained, and how it is kept: freezing, LoRA, checkpoints of the trained tensors, the finished model.

A run's folder holds ``checkpoint-N/`` (the trained tensors alone, with optimizer, scheduler and random state) and,
when it is finished, a whole model that opens by the folder's name; ``speechllm.json``, written last, marks it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from typing import Any

from speechllm import hub
from speechllm.config import PartConf, RunConfig
from speechllm.errors import UserError
from speechllm.files import write_json
from speechllm.models import Family, open_family
from speechllm.sample import Prompt
from speechllm.tasks import Task, open_task

TRAINED, DESCRIPTION, SCORE = "trained.safetensors", "speechllm.json", "score.json"


def set_trainable(family: Family, model: Any, config: RunConfig) -> list:
    """Freeze the parts that the config freezes and add LoRA where it asks.

    Returns:
        the modules without any trainable parameter, which must stay in evaluation mode.

    Raises:
        UserError: nothing is left to train, or LoRA names no layer of the part.
    """
    frozen = []
    for name, modules in family.parts(model).items():
        conf = config.part(name)
        for module in modules:
            module.requires_grad_(not (conf.freeze or conf.use_lora))
            if conf.use_lora:
                _add_lora(name, module, conf)
        if not any(p.requires_grad for module in modules for p in module.parameters()):
            frozen.extend(modules)
    if not any(p.requires_grad for p in model.parameters()):
        keys = ", ".join(f"{name}_conf.freeze" for name in family.parts(model))
        raise UserError(f"every part is frozen, nothing is left to train; set one of {keys} to false, or use LoRA")
    return frozen


def _add_lora(part: str, module: Any, conf: PartConf) -> None:
    """Inject LoRA into the linear layers of one module; layer names are matched inside it alone."""
    from peft import LoraConfig, inject_adapter_in_model
    from torch import nn

    wanted = conf.lora_conf.target_modules
    linear = [name for name, layer in module.named_modules() if name and isinstance(layer, nn.Linear)]
    targets = [name for name in linear if not wanted or name.rsplit(".", 1)[-1] in wanted]
    if targets:
        lora = conf.lora_conf
        inject_adapter_in_model(
            LoraConfig(r=lora.r, lora_alpha=lora.lora_alpha, lora_dropout=lora.lora_dropout, target_modules=targets),
            module,
        )
    elif linear:
        names = sorted({name.rsplit(".", 1)[-1] for name in linear})
        raise UserError(f"{part}_conf.lora_conf.target_modules {wanted} names no linear layer; there are {names}")


def merge_lora(model: Any) -> None:
    """Add every low-rank update to its layer, and put the plain layers back in place."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in [pair for pair in model.named_modules() if isinstance(pair[1], BaseTunerLayer)]:
        layer.merge()
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, layer.get_base_layer())


def parameter_table(family: Family, model: Any) -> str:
    """Parameters and trainable share of every part, as text."""
    rows = [("part", "parameters", "trainable", "share")]
    for name, modules in family.parts(model).items():
        parameters = {id(p): p for module in modules for p in module.parameters()}.values()
        total, trained = (
            sum(p.numel() for p in some) for some in (parameters, (p for p in parameters if p.requires_grad))
        )
        rows.append((name, f"{total:,}", f"{trained:,}", f"{trained / max(total, 1):.1%}"))
    return "\n".join(f"  {a:<16}{b:>16}{c:>16}{d:>9}" for a, b, c, d in rows)


def trained_tensors(model: Any) -> dict:
    """The parameters that bear gradient, by name."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def save_trained(model: Any, folder: str) -> None:
    from safetensors.torch import save_file

    tensors = {name: tensor.cpu().contiguous() for name, tensor in trained_tensors(model).items()}
    save_file(tensors, os.path.join(folder, TRAINED))


def load_trained(model: Any, folders: list[str]) -> None:
    """Put the trained tensors of a checkpoint, or the mean of several, into the model.

    Raises:
        UserError: the tensors are not those that this model trains.
    """
    import torch
    from safetensors.torch import load_file

    states = [load_file(os.path.join(folder, TRAINED)) for folder in folders]
    own = trained_tensors(model)
    for folder, state in zip(folders, states, strict=True):
        wrong = sorted(set(own) ^ set(state)) + [n for n in set(own) & set(state) if own[n].shape != state[n].shape]
        if wrong:
            raise UserError(f"{folder}: trained with other freeze flags, LoRA or model; differing tensors: {wrong[:5]}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(
                sum(state[name].double() for state in states) / len(states) if len(states) > 1 else states[0][name]
            )


def checkpoints(folder: str) -> list[str]:
    """The run's checkpoint folders, oldest first."""
    names = [name for name in os.listdir(folder) if re.fullmatch(r"checkpoint-\d+", name)]
    return [os.path.join(folder, name) for name in sorted(names, key=lambda name: int(name.split("-")[1]))]


def ranked(folder: str, higher_is_better: bool) -> list[str]:
    """The checkpoints that were scored on dev, best first; of equals, the earlier."""
    scored = []
    for path in checkpoints(folder):
        if os.path.isfile(os.path.join(path, SCORE)):
            with open(os.path.join(path, SCORE), encoding="utf-8") as file:
                scored.append((json.load(file)["value"], path))
    return [path for _, path in sorted(scored, key=lambda pair: -pair[0] if higher_is_better else pair[0])]


@dataclass
class Opened:
    """A checkpoint folder, ready to use."""

    family: Family
    task: Task
    model: Any
    prompt: Prompt
    max_new_tokens: int
    stamp: int  # when the model was made, ns


def save_model(family: Family, task: Task, model: Any, prompt: Prompt, max_new_tokens: int, folder: str) -> None:
    """Write the whole model, LoRA merged, into a run's folder; each file lands whole, the description last."""
    said = {"family": family.name, "task": task.name, "prompt": prompt._asdict(), "max_new_tokens": max_new_tokens}
    merge_lora(model)
    with tempfile.TemporaryDirectory(dir=folder, prefix="saving-") as staging:
        family.save(model, staging)
        for name in os.listdir(staging):
            os.replace(os.path.join(staging, name), os.path.join(folder, name))
    write_json(os.path.join(folder, DESCRIPTION), said)


def open_model(model_dir: str, hub_name: str = "ms") -> Opened:
    """A finished run, or a checkpoint from elsewhere: one without speechllm.json is what RunConfig's defaults say.

    Args:
        model_dir: a folder, or a name on the hub ``hub_name``.

    Raises:
        UserError: the folder holds a run that is not finished.
    """
    folder = hub.resolve(model_dir, hub_name)
    path = os.path.join(folder, DESCRIPTION)
    said = {
        "family": RunConfig.family,
        "task": RunConfig.task,
        "prompt": {},
        "max_new_tokens": RunConfig.max_new_tokens,
    }
    if os.path.isfile(path):
        with open(path, encoding="utf-8") as file:
            said = json.load(file)
    elif checkpoints(folder):
        raise UserError(f"{folder}: this run is not finished; the training command goes on from its newest checkpoint")
    opened = open_family(said["family"], folder)
    task = open_task(said["task"], opened)
    stamp = os.stat(path if os.path.isfile(path) else os.path.join(folder, "config.json")).st_mtime_ns
    return Opened(opened, task, opened.load(), Prompt(**said["prompt"]), said["max_new_tokens"], stamp)


def clear_leftovers(folder: str) -> None:
    """Remove what a killed run left half-written."""
    for name in os.listdir(folder):
        if name.startswith("saving"):
            shutil.rmtree(os.path.join(folder, name))
