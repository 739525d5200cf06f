"""QLoRA (Dettmers et al., 2023): a part's linear layers in 4 bits, by bitsandbytes, with LoRA beside them."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

from speechllm.config import PartConf, RunConfig
from speechllm.errors import UserError

log = logging.getLogger("speechllm")


def check(part: str, conf: PartConf, config: RunConfig) -> None:
    """Raises UserError where the part cannot be held in 4 bits."""
    if not conf.use_lora:
        raise UserError(f"{part}_conf.load_in_4bit keeps weights that cannot be trained; set {part}_conf.use_lora too")
    if config.train_conf.use_fsdp or config.train_conf.use_deepspeed:
        raise UserError(
            f"{part}_conf.load_in_4bit is not possible with train_conf.use_fsdp or use_deepspeed: each GPU holds the "
            "whole part, in an eighth of the memory; leave these out"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"{part}_conf.load_in_4bit needs bitsandbytes: pip install '.[qlora]'; or set it to false")


def quantise(part: str, module: Any) -> None:
    """Put layers of 4 bits (NF4, the scales of its blocks quantised again) in the place of the linear layers."""
    from bitsandbytes.nn import Linear4bit, Params4bit
    from torch import nn

    linear = [pair for pair in module.named_modules() if pair[0] and isinstance(pair[1], nn.Linear)]
    # On a CPU bitsandbytes (0.50.2) confuses the scales of rows that are not whole blocks of 64.
    fitting = [(name, layer) for name, layer in linear if layer.in_features % 64 == 0]
    if linear:
        log.info("%s: %d of %d linear layers are held in 4 bits", part, len(fitting), len(linear))
    for name, layer in fitting:
        held = Linear4bit(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        held.weight = Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
        held.bias = layer.bias
        held.support_avx512bf16_for_cpu = False  # it would repack the weights when it decodes, and train no more
        module.set_submodule(name, held.to(layer.weight.device))
    module.is_loaded_in_4bit = True  # peft asks


def dequantised(layer: Any) -> Any:
    """A linear layer in float32; one that is not in 4 bits, as it is."""
    if not hasattr(layer.weight, "quant_state"):
        return layer
    from bitsandbytes.functional import dequantize_4bit
    from torch import nn

    plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    plain.weight = nn.Parameter(dequantize_4bit(layer.weight.data, layer.weight.quant_state).float(), False)
    plain.bias = None if layer.bias is None else nn.Parameter(layer.bias.float(), False)
    return plain
