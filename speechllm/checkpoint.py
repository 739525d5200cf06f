"""What is trained, and how it is kept: freezing, LoRA, checkpoints of the trained tensors, the finished model.

A run's folder holds ``checkpoint-N/`` (the trained tensors alone, with optimizer, scheduler and random state) and,
when it is finished, a whole model that opens by the folder's name; ``speechllm.json``, written last, marks it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from speechllm import cli, hub, qlora
from speechllm.config import PARTS, PartConf, RunConfig
from speechllm.errors import UserError
from speechllm.files import write_json
from speechllm.formats.jsonl import JsonlFile
from speechllm.models import Family, family_of, open_family
from speechllm.sample import Prompt
from speechllm.tasks import Task, open_task, task_of

log = logging.getLogger("speechllm")

TRAINED, DESCRIPTION, SCORE = "trained.safetensors", "speechllm.json", "score.json"


def set_trainable(family: Family, model: Any, config: RunConfig) -> list:
    """Freeze the parts that the config freezes and add LoRA where it asks.

    Returns:
        the modules without any trainable parameter, which must stay in evaluation mode.

    Raises:
        UserError: nothing is left to train, LoRA names no layer of the part, or 4 bits are not possible.
    """
    frozen, parts = [], family.parts(model)
    for name in PARTS:
        if name not in parts and config.part(name) != PartConf():
            raise UserError(f"{name}_conf is set, and {family.name} has no such part; it has {', '.join(parts)}")
    for name, modules in parts.items():
        conf = config.part(name)
        if conf.load_in_4bit:
            qlora.check(name, conf, config)
        for module in modules:
            module.requires_grad_(not (conf.freeze or conf.use_lora))
            if conf.load_in_4bit:
                qlora.quantise(name, module)
            if conf.use_lora:
                _add_lora(name, module, conf)
        if not any(p.requires_grad for module in modules for p in module.parameters()):
            frozen.extend(modules)
    if family.added_tokens and (config.llm_conf.freeze or config.llm_conf.use_lora):
        _add_rows(family.llm(model), family.added_tokens)
    if not any(p.requires_grad for p in model.parameters()):
        keys = ", ".join(f"{name}_conf.freeze" for name in parts)
        raise UserError(f"every part is frozen, nothing is left to train; set one of {keys} to false, or use LoRA")
    return frozen


def _add_lora(part: str, module: Any, conf: PartConf) -> None:
    """Inject LoRA into the linear layers of one module; layer names are matched inside it alone."""
    from peft import LoraConfig, inject_adapter_in_model
    from torch import nn

    wanted = conf.lora_conf.target_modules
    linear = [name for name, layer in module.named_modules() if name and isinstance(layer, nn.Linear)]
    targets = [name for name in linear if not wanted or set(name.split(".")) & set(wanted)]
    if targets:
        lora = conf.lora_conf
        inject_adapter_in_model(
            LoraConfig(r=lora.r, lora_alpha=lora.lora_alpha, lora_dropout=lora.lora_dropout, target_modules=targets),
            module,
        )
    elif linear:
        names = sorted({name.rsplit(".", 1)[-1] for name in linear})
        raise UserError(f"{part}_conf.lora_conf.target_modules {wanted} names no linear layer; there are {names}")


def _add_rows(llm: Any, ids: Sequence[int]) -> None:
    """Train some rows of the embedding and of the head, which may be one matrix; the others stay as they are."""
    from peft import TrainableTokensConfig
    from peft.tuners.trainable_tokens import TrainableTokensLayer

    conf = TrainableTokensConfig(token_indices=list(ids))
    embedding, head = llm.get_input_embeddings(), llm.get_output_embeddings()
    rows = TrainableTokensLayer(embedding, "default", conf)
    rows.update_layer("default", conf)
    tied = rows if head.weight is embedding.weight else None
    head_rows = TrainableTokensLayer(head, "default", conf, tied_adapter=tied)
    head_rows.update_layer("default", conf, tied_adapter=tied)
    llm.set_input_embeddings(rows)
    llm.set_output_embeddings(head_rows)


def merge_lora(model: Any) -> None:
    """Put every low-rank update, and every trained row, into its layer, and plain layers back in place."""
    import torch
    from peft.tuners.trainable_tokens import TrainableTokensLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

    quantised = any(hasattr(p, "quant_state") for p in model.parameters())
    for name, layer in [pair for pair in model.named_modules() if isinstance(pair[1], BaseTunerLayer)]:
        if isinstance(layer, TrainableTokensLayer):
            layer.merge()
            model.set_submodule(name, layer.get_base_layer())
            continue
        plain = qlora.dequantised(layer.get_base_layer())
        with torch.no_grad():
            plain.weight += sum(layer.get_delta_weight(adapter) for adapter in layer.active_adapters)
        model.set_submodule(name, plain)
    held = [name for name, layer in model.named_modules() if hasattr(getattr(layer, "weight", None), "quant_state")]
    for name in held:  # in 4 bits without LoRA
        model.set_submodule(name, qlora.dequantised(model.get_submodule(name)))
    if quantised:
        log.info("the merged weights are the weights of the base in 4 bits, as it was in training, plus LoRA's")


def parameter_table(family: Family, model: Any) -> str:
    """Parameters and trainable share of every part, as text."""
    rows = [("part", "parameters", "trainable", "share")]
    for name, modules in family.parts(model).items():
        parameters = {id(p): p for module in modules for p in module.parameters()}.values()
        total, trained = (
            sum(_count(p) for p in some) for some in (parameters, (p for p in parameters if p.requires_grad))
        )
        rows.append((name, f"{total:,}", f"{trained:,}", f"{trained / max(total, 1):.1%}"))
    return "\n".join(f"  {a:<16}{b:>16}{c:>16}{d:>9}" for a, b, c, d in rows)


def _count(parameter: Any) -> int:
    state = getattr(parameter, "quant_state", None)  # two weights of 4 bits share a byte
    return math.prod(state.shape) if state else parameter.numel()


def trained_tensors(model: Any) -> dict:
    """The parameters that bear gradient, by name."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


@contextlib.contextmanager
def saving(folder: str) -> Iterator[None]:
    """What a full disk raises while ``folder`` is written becomes one clear line, and the folder vanishes."""
    from safetensors import SafetensorError
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except (OSError, SafetensorError, CheckpointException, RuntimeError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # torch's writer of files
            raise
        home = os.path.dirname(folder)
        if isinstance(error, CheckpointException):  # of several ranks
            error = next(iter(error.failures.values()))[0]
        raise UserError(
            f"{home}: cannot be written, {shutil.disk_usage(home).free / 1e9:.2f} GB are free: "
            f"{' '.join(str(error).split())[:200]}. What was saved before is whole: make room, and the same command "
            "goes on from the newest checkpoint"
        ) from error


def save_trained(model: Any, folder: str, here: bool = True) -> None:
    """Write the trained tensors, whole. To be called on all ranks, where each holds a shard of every tensor.

    Args:
        here: whether this rank writes.
    """
    from safetensors.torch import save_file

    tensors = {}
    for name, tensor in trained_tensors(model).items():
        tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # one at a time
        if here:
            tensors[name] = tensor.cpu().contiguous()
    if here:
        os.makedirs(folder, exist_ok=True)
        save_file(tensors, os.path.join(folder, TRAINED))


def load_trained(model: Any, folders: list[str]) -> None:
    """Put the trained tensors of a checkpoint, or the mean of several, into the model.

    Raises:
        UserError: the tensors are not those that this model trains.
    """
    from safetensors import safe_open

    files = [safe_open(os.path.join(folder, TRAINED), "pt") for folder in folders]
    own = trained_tensors(model)
    for folder, file in zip(folders, files, strict=True):
        kept = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        wrong = sorted(set(own) ^ set(kept)) + [n for n in set(own) & set(kept) if list(own[n].shape) != kept[n]]
        if wrong:
            raise UserError(f"{folder}: trained with other freeze flags, LoRA or model; differing tensors: {wrong[:5]}")
    for name, tensor in own.items():
        values = [file.get_tensor(name) for file in files]  # a tensor at a time, however large the model
        _put(sum(value.double() for value in values) / len(values) if len(values) > 1 else values[0], tensor)


def rebuild(family: Family, config: RunConfig, folders: list[str]) -> Any:
    """The model in the state of one checkpoint, or the mean of several: whole, on the CPU, however it was trained."""
    model = family.load()
    set_trainable(family, model, config)
    load_trained(model, folders)
    return model


def _put(source: Any, target: Any) -> None:
    """Copy a whole tensor into a parameter; of a sharded one, this rank's part."""
    import torch
    from torch.distributed.tensor import DTensor, distribute_tensor

    with torch.no_grad():
        source = source.to(target.device, target.dtype)
        if isinstance(target, DTensor):
            source = distribute_tensor(source, target.device_mesh, target.placements, src_data_rank=None)
        target.copy_(source)


def checkpoints(folder: str) -> list[str]:
    """The run's checkpoint folders, oldest first."""
    names = [name for name in os.listdir(folder) if re.fullmatch(r"checkpoint-\d+", name)]
    return [os.path.join(folder, name) for name in sorted(names, key=lambda name: int(name.split("-")[1]))]


def history(folder: str) -> list[dict]:
    """What the trainer had logged by this checkpoint."""
    with open(os.path.join(folder, "trainer_state.json"), encoding="utf-8") as file:
        return json.load(file)["log_history"]


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

    folder: str
    family: Family
    task: Task
    model: Any
    prompt: Prompt
    max_new_tokens: int
    stamp: int  # when the model was made, ns


def save_model(
    family: Family, task: Task, model: Any, prompt: Prompt, max_new_tokens: int, folder: str, format: str = ""
) -> None:
    """Write the whole model, LoRA merged, into a folder; each file lands whole, the description last.

    Args:
        format: one of the family's ``formats``; empty: the layout of the checkpoint that the family was opened on.
    """
    said = {"family": family.name, "task": task.name, "prompt": prompt._asdict(), "max_new_tokens": max_new_tokens}
    merge_lora(model)
    with tempfile.TemporaryDirectory(dir=folder, prefix="saving-") as staging, saving(staging):
        family.save(model, staging, format)
        for parent, _, names in os.walk(staging):
            target = os.path.join(folder, os.path.relpath(parent, staging))
            os.makedirs(target, exist_ok=True)
            for name in names:
                os.replace(os.path.join(parent, name), os.path.join(target, name))
    write_json(os.path.join(folder, DESCRIPTION), said)


def export(model_dir: str, hub_name: str, format: str, output_dir: str) -> None:
    """Write a checkpoint in another layout, or a run's ``checkpoint-N`` as a whole model; LoRA is merged.

    The folder appears when it is complete. What the model computes stays the same, and tensors that were not trained
    keep their bytes: what one layout has no place for is carried along.

    Args:
        model_dir: as :func:`open_model` takes it.
        format: one of the family's ``formats``.

    Raises:
        UserError: the family writes no such format, or ``output_dir`` holds something already.
    """
    out = os.path.normpath(output_dir)
    if os.path.isdir(out) and os.listdir(out):
        raise UserError(f"{out} is not empty; give another ++output_dir, or empty it")
    opened = open_model(model_dir, hub_name)
    if format not in opened.family.formats:
        raise UserError(f"{opened.family.name} is not written as {format}; formats: {', '.join(opened.family.formats)}")
    part = f"{out}.part"
    shutil.rmtree(part, ignore_errors=True)
    os.makedirs(part)
    save_model(opened.family, opened.task, opened.model, opened.prompt, opened.max_new_tokens, part, format)
    os.replace(part, out)
    log.info("%s: written as %s into %s", model_dir, format, out)


def open_model(model_dir: str, hub_name: str = "ms") -> Opened:
    """A finished run, a run's ``checkpoint-N``, or a checkpoint from elsewhere.

    Of the last, config.json names the family, or else it is what RunConfig's defaults say.

    Args:
        model_dir: a folder, or a name on the hub ``hub_name``.

    Raises:
        UserError: the folder holds a run that is not finished.
    """
    folder = hub.resolve(model_dir, hub_name)
    if os.path.isfile(os.path.join(folder, TRAINED)):
        return _open_checkpoint(folder)
    path = os.path.join(folder, DESCRIPTION)
    said = {
        "family": family_of(folder) or RunConfig.family,
        "task": "",
        "prompt": {},
        "max_new_tokens": RunConfig.max_new_tokens,
    }
    if os.path.isfile(path):
        with open(path, encoding="utf-8") as file:
            said = json.load(file)
    elif checkpoints(folder):
        raise UserError(
            f"{folder}: this run is not finished; the training command goes on from its newest checkpoint, and "
            f"{checkpoints(folder)[-1]} can be used as it is"
        )
    family = open_family(said["family"], folder)
    task = open_task(said["task"] or task_of(family), family)
    stamp = os.stat(path).st_mtime_ns if os.path.isfile(path) else family.stamp()
    return Opened(folder, family, task, family.load(), Prompt(**said["prompt"]), said["max_new_tokens"], stamp)


def _open_checkpoint(folder: str) -> Opened:
    """A run's ``checkpoint-N``: the model that the run started from, with the tensors that it had trained by then."""
    run = os.path.dirname(os.path.abspath(folder))
    path = os.path.join(run, "run.yaml")
    if not os.path.isfile(path):
        raise UserError(f"{folder}: the tensors of a run, and {path}, which says of which, is not there; put it back")
    config = cli.parse(RunConfig, ["--config", path])
    family = open_family(config.family, hub.resolve(config.model, config.hub))
    task = open_task(config.task, family, config)
    model = rebuild(family, config, [folder])
    merge_lora(model)
    stamp = os.stat(os.path.join(folder, TRAINED)).st_mtime_ns
    return Opened(folder, family, task, model, _prompt(run, config), config.max_new_tokens, stamp)


def _prompt(run: str, config: RunConfig) -> Prompt:
    """The prompt of most of the run's training data."""
    path = os.path.join(run, DESCRIPTION)
    if os.path.isfile(path):
        with open(path, encoding="utf-8") as file:
            return Prompt(**json.load(file)["prompt"])
    try:
        return JsonlFile(config.train_data_set_list).prompts.most_common(1)[0][0]
    except UserError as error:
        log.warning("the prompt that %s was trained with is not known, the default one is taken: %s", run, error)
        return Prompt()


def clear_leftovers(folder: str) -> None:
    """Remove what a killed run left half-written."""
    for name in os.listdir(folder):
        if name.startswith("saving"):
            shutil.rmtree(os.path.join(folder, name))
