"""``freeze_policy=auto``: the hours of training data decide which parts are trained."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import replace

from speechllm.config import RunConfig
from speechllm.errors import UserError

log = logging.getLogger("speechllm")

PARTS = ("audio_encoder", "audio_adaptor", "llm")
ADVICE = (
    "Fun-ASR's authors advise the adaptor under 1,000 h, encoder and adaptor under 5,000 h, all above 10,000 h; "
    "between the last two, encoder and adaptor are taken"
)


def trained_parts(hours: float) -> tuple[str, ...]:
    """The parts to train on so many hours (docs/finetune.md of the Fun-ASR repository).

    It is silent on 5,000 to 10,000 hours. The LLM stays frozen there: it is the part that most hours are asked for.
    """
    if hours < 1_000:
        return ("audio_adaptor",)
    return ("audio_encoder", "audio_adaptor") if hours <= 10_000 else PARTS


def decide(config: RunConfig, hours: float, parts: Collection[str]) -> RunConfig:
    """The config with the freeze flags that the policy asks for; a part with ``use_lora`` keeps its updates.

    Args:
        hours: of speech to train on.
        parts: names of the model's parts.

    Raises:
        UserError: the advice does not speak of this model's parts.
    """
    if config.freeze_policy == "manual":
        return config
    if set(parts) != set(PARTS):
        raise UserError(
            f"freeze_policy=auto is advice for a model of {', '.join(PARTS)}; this one has {', '.join(parts)}. "
            "Set the freeze flag of each part instead"
        )
    trained = trained_parts(hours)
    frozen = [name for name in PARTS if name not in trained]
    log.info(
        "freeze_policy=auto: %.1f h to train on, so trained: %s; frozen: %s (%s)",
        hours,
        ", ".join(trained),
        ", ".join(frozen) or "nothing",
        ADVICE,
    )
    return replace(config, **{f"{name}_conf": replace(config.part(name), freeze=name in frozen) for name in PARTS})
