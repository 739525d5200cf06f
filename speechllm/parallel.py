"""How the passes through the model are run: precision, recomputed activations, torch.compile, sharding over the ranks.

The unit of all of them is the transformer layer: every layer of transformers' models is a GradientCheckpointingLayer.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from speechllm.config import RunConfig
from speechllm.errors import UserError
from speechllm.models import Family

log = logging.getLogger("speechllm")

OPTIMIZER = "optimizer"  # folder in a checkpoint: the shards of all ranks
SIZES = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
TAKEN = (*SIZES, "optimizer", "scheduler", "bf16", "fp16", "torch_autocast")  # of DeepSpeed's JSON, by our config
DEEPSPEED = Path(__file__).resolve().parents[1] / "conf" / "ds_stage1.json"


def layers(module: nn.Module) -> list[nn.Module]:
    return [layer for layer in module.modules() if isinstance(layer, GradientCheckpointingLayer)]


def use_bfloat16(config: RunConfig) -> bool:
    """Whether the passes run in bfloat16: as the config says, or with auto, where a GPU computes in it."""
    if config.train_conf.dtype == "auto":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return config.train_conf.dtype == "bfloat16"


def prepare_layers(family: Family, model: nn.Module, config: RunConfig) -> None:
    """Let the transformer layers recompute their activations in the backward pass, and compile those of the LLM.

    Only the layers' ``forward`` changes, so names of modules and weights stay. Frozen layers recompute too: a gradient
    passes through them on its way to the adaptor (transformers' own switch leaves out what is in evaluation mode).
    """
    train = config.train_conf
    for layer in model.modules():
        if hasattr(layer, "compute_type_is_set"):  # bitsandbytes, 4 bits
            layer.compute_dtype = torch.bfloat16 if use_bfloat16(config) else torch.float32
            layer.compute_type_is_set = True
    for name, modules in family.parts(model).items():
        found = [layer for module in modules for layer in layers(module)]
        for layer in found:
            _wrap(layer, train.gradient_checkpointing, train.compile and name == "llm")
        if train.gradient_checkpointing and not found:
            log.warning("%s has no transformer layers: train_conf.gradient_checkpointing does nothing there", name)


def _wrap(layer: nn.Module, recomputed: bool, compiled: bool) -> None:
    plain = run = layer.forward
    if compiled:
        run = torch.compile(run, dynamic=True)  # lengths differ from batch to batch
    if recomputed:
        run = partial(checkpoint, run, use_reentrant=False)
    if recomputed or compiled:
        # Without gradient (dev set) as ever: generation changes its shapes at every token.
        layer.forward = lambda *args, **kwargs: (run if torch.is_grad_enabled() else plain)(*args, **kwargs)


# ---- FSDP2


def shard(objective: nn.Module, bfloat16: bool) -> None:
    """Shard every parameter over all ranks, in place, by torch's own FSDP2; works on GPUs and on CPUs.

    Each transformer layer is gathered for its passes alone; what is outside of layers (embeddings, tied or not, norms,
    projections) makes one more unit. Weights stay in float32; in bfloat16 they are gathered and used.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from transformers import PreTrainedModel

    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bfloat16 else MixedPrecisionPolicy()
    for layer in reversed(layers(objective)):  # inner ones first
        fully_shard(layer, mp_policy=policy)
    fully_shard(objective, mp_policy=policy)
    objective._get_fsdp_state()._lazy_init()  # it is the root, even if the first pass is one of the dev set
    for module in objective.modules():
        if module is objective or isinstance(module, PreTrainedModel):
            module._is_fsdp_managed_module = False  # transformers would take it for one that it sharded; see gathered()


def is_sharded(objective: nn.Module) -> bool:
    from torch.distributed.fsdp import FSDPModule

    return isinstance(objective, FSDPModule)


@contextlib.contextmanager
def gathered(objective: nn.Module, bfloat16: bool) -> Iterator[None]:
    """All weights whole on every rank, to decode the dev set; nothing to do where they are not sharded.

    Ranks decode different numbers of tokens, so they cannot gather layer by layer together; and gathering for every
    token would cost far more time than the memory, which is that of the weights alone, is worth.
    """
    from torch.distributed.fsdp import FSDPModule

    units = [module for module in objective.modules() if isinstance(module, FSDPModule)]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        with torch.autocast(next(objective.parameters()).device.type, torch.bfloat16, enabled=bfloat16 and bool(units)):
            yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(unit is not objective, recurse=False)
        if units:
            objective.reset_iter_state()  # shards again, and forgets passes that the other ranks did not make


def save_optimizer(objective: nn.Module, optimizer: torch.optim.Optimizer, folder: str) -> None:
    """Every rank writes its own shards into ``folder/optimizer``; to be called on all ranks."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    dcp.save({OPTIMIZER: get_optimizer_state_dict(objective, optimizer)}, checkpoint_id=os.path.join(folder, OPTIMIZER))


def load_optimizer(objective: nn.Module, optimizer: torch.optim.Optimizer, folder: str) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    state = {OPTIMIZER: get_optimizer_state_dict(objective, optimizer)}
    dcp.load(state, checkpoint_id=os.path.join(folder, OPTIMIZER))
    set_optimizer_state_dict(objective, optimizer, state[OPTIMIZER])


# ---- DeepSpeed


def deepspeed_config(config: RunConfig) -> dict | None:
    """DeepSpeed's JSON with what the run's config decides filled in; None without DeepSpeed.

    bfloat16 comes by autocast as elsewhere, so that weights, and what is saved of them, stay in float32.

    Raises:
        UserError: DeepSpeed cannot run here, or the file holds what is not its own to decide.
    """
    train = config.train_conf
    if not train.use_deepspeed:
        return None
    if train.use_fsdp:
        raise UserError("train_conf.use_fsdp and train_conf.use_deepspeed both shard; set one of them to false")
    path = train.deepspeed_config or DEEPSPEED
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError(
            "train_conf.use_deepspeed needs DeepSpeed: pip install '.[deepspeed]'; or use train_conf.use_fsdp"
        )
    if not torch.accelerator.is_available() or "LOCAL_RANK" not in os.environ:
        raise UserError("train_conf.use_deepspeed needs GPUs and torchrun: start with bash finetune.sh --nproc 2")
    try:
        with open(path, encoding="utf-8") as file:
            own = json.load(file)
    except (OSError, ValueError) as error:
        raise UserError(f"train_conf.deepspeed_config {path}: {error}; give a JSON of DeepSpeed") from error
    twice = [key for key in TAKEN if own.get(key, "auto") not in ("auto", {"enabled": "auto"}, {"enabled": False})]
    if twice:
        raise UserError(f"{path}: {', '.join(twice)}: the run's own config decides that; remove it from the file")
    if own.get("zero_optimization", {}).get("stage", 0) > 2:
        raise UserError(f"{path}: ZeRO stage 3 is not supported; to shard the weights too, use train_conf.use_fsdp")
    precision = {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}} if use_bfloat16(config) else {}
    return {key: own[key] for key in own if key not in TAKEN} | dict.fromkeys(SIZES, "auto") | precision
