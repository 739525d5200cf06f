"""++freeze_policy=auto: what the hours of data decide."""

import logging

import pytest

from speechllm import cli, freeze_policy
from speechllm.config import RunConfig
from speechllm.errors import UserError

PARTS = ["audio_encoder", "audio_adaptor", "llm"]


def config(*words):
    return cli.parse(RunConfig, list(words))


# docs/finetune.md of the Fun-ASR repository: under 1,000 h the adaptor, under 5,000 h encoder and adaptor, over
# 10,000 h everything; between 5,000 and 10,000 h it says nothing.
@pytest.mark.parametrize(
    "hours,trained",
    [
        (0.5, {"audio_adaptor"}),
        (999.9, {"audio_adaptor"}),
        (1_000, {"audio_encoder", "audio_adaptor"}),
        (4_999, {"audio_encoder", "audio_adaptor"}),
        (10_000, {"audio_encoder", "audio_adaptor"}),
        (10_001, set(PARTS)),
    ],
)
def test_hours_decide_what_is_trained_in_place_of_the_flags(hours, trained, caplog):
    caplog.set_level(logging.INFO)
    for flag in ("true", "false"):
        given = config("++freeze_policy=auto", *[f"++{name}_conf.freeze={flag}" for name in PARTS])
        decided = freeze_policy.decide(given, hours, PARTS)
        assert {name for name in PARTS if not decided.part(name).freeze} == trained
    assert f"{hours:.1f} h" in caplog.text and "trained: " + ", ".join(n for n in PARTS if n in trained) in caplog.text


def test_nothing_else_of_the_config_changes():
    given = config("++freeze_policy=auto", "++llm_conf.use_lora=true", "++llm_conf.lora_conf.r=3")
    decided = freeze_policy.decide(given, 10, PARTS)
    assert decided.llm_conf.use_lora and decided.llm_conf.lora_conf.r == 3
    decided.audio_encoder_conf.freeze = decided.llm_conf.freeze = False
    assert decided == given


def test_without_auto_the_flags_stand():
    given = config("++llm_conf.freeze=true")
    assert freeze_policy.decide(given, 10, ["encoder"]) is given


def test_a_model_of_other_parts_is_refused():
    with pytest.raises(UserError, match="this one has audio_tower, llm"):
        freeze_policy.decide(config("++freeze_policy=auto"), 10, ["audio_tower", "llm"])
