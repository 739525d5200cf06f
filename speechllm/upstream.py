"""Options that Fun-ASR's trainer (funasr-train-ds) takes and ours does not have: each is honoured, or refused by name.

Facts: Fun-ASR's finetune.sh, funasr's bin/train_ds.py, train_utils/trainer_ds.py, datasets and schedulers (1.4.16).
Options of the same name stand in speechllm/config.py; what stands in neither is an unknown option.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from speechllm.errors import UserError


class Note(NamedTuple):
    """Honoured without doing anything."""

    why: str


class Use(NamedTuple):
    """Honoured by other options; ``{}`` stands for the value."""

    words: str
    last: bool = False  # whatever stands after it on the command line


class Refuse(NamedTuple):
    mend: str


Rule = Note | Use | Refuse

BUDGET = Refuse("dataset_conf.batch_size alone bounds a batch; with dataset_conf.batch_type=example it counts rows")
LENGTHS = Refuse("no row is left out for its length; take such rows out of the JSONL by speech_length and text_length")
LOADER = Note("the loader sees to that by itself")
CTC = Refuse("no CTC decoder is trained, here or by Fun-ASR's trainer; it is carried along as it is")
PARTS = Refuse("set audio_encoder_conf.freeze, audio_adaptor_conf.freeze or llm_conf.freeze")
CHECKPOINTING = {
    "true": Use("train_conf.gradient_checkpointing=true"),
    "*": Note("see train_conf.gradient_checkpointing"),
}

# Per option one rule, or rules by value in lower case, where * is any other value.
OPTIONS: dict[str, Rule | dict[str, Rule]] = {
    # what Fun-ASR's finetune.sh passes
    "trust_remote_code": Note("no code of a checkpoint is ever run"),
    "dataset_conf.batch_sampler": {
        "batchsampler": Note("rows of like length make a batch, under the budget dataset_conf.batch_size"),
        "*": Refuse("there is one way to make batches, BatchSampler's; leave the option out"),
    },
    "dataset_conf.sort_size": Note("all rows are sorted by length, so no buffer is sorted"),
    "dataset_conf.data_split_num": Note(
        "rows stay on disk until their turn comes, so no data is split to fit into memory"
    ),
    "train_conf.effective_save_name_excludes": {
        **dict.fromkeys(["none", "null", "", "[]"], Note("the finished model is saved whole")),
        "*": Refuse("the finished model is saved whole, a checkpoint holds what is trained; leave the option out"),
    },
    # LoRA
    "lora_only": {
        "true": Use("audio_encoder_conf.freeze=true audio_adaptor_conf.freeze=true llm_conf.freeze=true", last=True),
        "*": Note("each part's freeze and use_lora decide"),
    },
    "lora_bias": {"none": Note("biases stay as they are"), "*": Refuse("the low-rank updates alone are trained")},
    "train_conf.use_lora": Refuse("Fun-ASR ignores it; use llm_conf.use_lora"),
    "use_lora": Refuse("use llm_conf.use_lora"),
    # other names for what config.py has
    "hub": {"modelscope": Use("hub=ms"), "huggingface": Use("hub=hf")},
    "seed": Use("train_conf.seed={}"),
    "use_fsdp": Use("train_conf.use_fsdp={}"),
    "use_deepspeed": Use("train_conf.use_deepspeed={}"),
    "deepspeed_config": Use("train_conf.deepspeed_config={}"),
    "train_conf.use_bf16": {"true": Use("train_conf.dtype=bfloat16"), "*": Use("train_conf.dtype=float32")},
    "train_conf.use_fp16": {
        "false": Note("float16 is never used; see train_conf.dtype"),
        "*": Refuse("float16 overflows; use train_conf.dtype=bfloat16"),
    },
    "llm_conf.llm_dtype": {
        "bf16": Use("train_conf.dtype=bfloat16"),
        "fp32": Use("train_conf.dtype=float32"),
        "*": Refuse("use train_conf.dtype=bfloat16 or float32"),
    },
    "audio_encoder_conf.activation_checkpoint": CHECKPOINTING,
    "llm_conf.activation_checkpoint": CHECKPOINTING,
    # the model
    "model_revision": {
        "master": Note("the newest revision is taken"),
        "*": Refuse("download that revision, and give its folder as model"),
    },
    "remote_code": Refuse("no code of a checkpoint is ever run; leave it out"),
    "init_param": Refuse("give the folder that holds these weights as model"),
    "freeze_param": PARTS,
    "ctc_weight": CTC,
    "ctc_conf": CTC,
    "ctc_decoder_conf.freeze": {"true": Note("the CTC decoder is carried along as it is"), "*": CTC},
    "detach_ctc_decoder": CTC,
    "length_normalized_loss": Refuse("the loss is the mean over the answers' tokens of a step; leave it out"),
    # rows and batches
    "dataset_conf.shuffle": {
        "true": Note("rows of like length, and the batches, are shuffled anew in every epoch"),
        "*": Refuse("rows are always shuffled, by train_conf.seed and the epoch; leave it out"),
    },
    "dataset_conf.drop_last": {
        "false": Note("no row is dropped"),
        "*": Refuse("no row is ever dropped; leave it out"),
    },
    "dataset_conf.batch_size_sample_max": BUDGET,
    "dataset_conf.batch_size_token_max": BUDGET,
    "dataset_conf.batch_size_scale_ratio_max": BUDGET,
    "dataset_conf.max_token_length": LENGTHS,
    "dataset_conf.min_token_length": LENGTHS,
    "dataset_conf.max_source_length": LENGTHS,
    "dataset_conf.min_source_length": LENGTHS,
    "dataset_conf.max_target_length": LENGTHS,
    "dataset_conf.min_target_length": LENGTHS,
    "dataset_conf.pin_memory": LOADER,
    "dataset_conf.persistent_workers": LOADER,
    "dataset_conf.prefetch_factor": LOADER,
    "dataset_conf.preprocessor_noise": Refuse("use dataset_conf.noise and dataset_conf.reverb"),
    "dataset_conf.preprocessor_speech": Refuse("use dataset_conf.speed_perturb"),
    "dataset_conf.prompt_classes": {
        "null": Note("the prompts of the rows are used as they stand"),
        "*": Refuse("the rows carry their prompts; tools/scp2jsonl.py ++hotwords_file=... puts hotwords there"),
    },
    # the run
    "optim": {
        "adamw": Note("AdamW it is"),
        "*": Refuse("AdamW is the one optimiser, and with optim_conf.weight_decay=0 it is Adam; leave it out"),
    },
    "scheduler": Refuse("use scheduler_conf.type and scheduler_conf.warmup"),
    "scheduler_conf.warmup_steps": Refuse(
        "use scheduler_conf.warmup, the share of the run's steps in which the learning rate rises"
    ),
    "train_conf.grad_clip_type": {
        **dict.fromkeys(["2", "2.0"], Note("train_conf.grad_clip is such a norm")),
        "*": Refuse("train_conf.grad_clip is a norm of order 2; leave it out"),
    },
    "train_conf.avg_keep_nbest_models_type": Note("checkpoints are ranked by the error rate of the decoded dev set"),
    "train_conf.early_stopping_patience": Refuse("use train_conf.early_stop, which counts validations, not epochs"),
    "train_conf.use_ddp": Note("several processes are DDP, unless train_conf.use_fsdp or use_deepspeed is set"),
    "train_conf.find_unused_parameters": Note("what is not trained is known, so nothing is searched"),
    "train_conf.use_wandb": {
        "false": Note("nothing is sent anywhere"),
        "*": Refuse("curves are TensorBoard files in output_dir/tensorboard; `wandb sync` takes them"),
    },
    # the machine
    "device": {
        "cuda": Note("the visible GPUs are used, or the CPU where there are none"),
        "*": Refuse("choose by the environment: CUDA_VISIBLE_DEVICES=0,1, or empty for the CPU"),
    },
    "ngpu": Refuse("choose GPUs with CUDA_VISIBLE_DEVICES, and processes with finetune.sh --nproc"),
    "ncpu": Refuse("choose threads with OMP_NUM_THREADS in the environment, and readers with dataset_conf.num_workers"),
    "config_path": Refuse("give a YAML with --config FILE"),
    "config_name": Refuse("give a YAML with --config FILE"),
}


class Given(NamedTuple):
    """An option as it was given; ``key`` is empty for a word that sets none."""

    key: str
    value: str
    words: list[str]
    file: str = ""  # the YAML it stands in


def translate(words: list[str]) -> list[str]:
    """The command line, with Fun-ASR's options turned into ours; also those in the YAML of ``--config``.

    Raises:
        UserError: an option that cannot be honoured, or two that contradict each other.
    """
    given = list(_given(words))
    _refuse_contradictions(given)
    early, late = [], []
    for one in given:
        rule = _rule(one)
        if rule is None:
            early += one.words
        elif isinstance(rule, Refuse):
            place = f"{one.file}: " if one.file else ""
            raise UserError(
                f"{place}{one.key}={one.value} is an option of Fun-ASR's trainer, not taken here: {rule.mend}"
            )
        elif isinstance(rule, Use):
            (late if rule.last else early).extend(f"--{word}" for word in _filled(rule, one))
    return early + late


def notes(words: list[str]) -> list[str]:
    """How each of Fun-ASR's options is honoured, a line each; for words that :func:`translate` takes."""
    given = list(_given(words))
    values = {one.key: one.value.lower() for one in given}
    told = []
    for one in given:
        rule, part = _rule(one), one.key.removesuffix(".freeze")
        if rule:
            told.append((one, " ".join(_filled(rule, one)) if isinstance(rule, Use) else rule.why))
        elif one.key != part and one.value.lower() == "false" and values.get(f"{part}.use_lora") == "true":
            told.append((one, "its low-rank updates are trained, its weights kept, since use_lora=true"))
    return [f"{one.key}={one.value}: {text}" for one, text in told]


def _rule(one: Given) -> Rule | None:
    rule = OPTIONS.get(one.key)
    return rule.get(one.value.lower(), rule.get("*")) if isinstance(rule, dict) else rule


def _filled(rule: Use, one: Given) -> list[str]:
    return [word.format(one.value) for word in rule.words.split()]


def _refuse_contradictions(given: list[Given]) -> None:
    values = {one.key: one.value.lower() for one in given}
    lora_only = values.get("lora_only") == "true"
    if lora_only and not any(key.endswith("_conf.use_lora") and value == "true" for key, value in values.items()):
        raise UserError("lora_only=true freezes all but LoRA, and no part has it; add llm_conf.use_lora=true")
    if values.get("freeze_policy") == "auto":
        typed = [one.key for one in given if one.key.endswith("_conf.freeze") and not one.file]
        for key in typed + ["lora_only"] * lora_only:
            raise UserError(f"freeze_policy=auto decides what is frozen, and so does {key}; give one of them")


def _given(words: list[str]) -> Iterator[Given]:
    rest = list(words)
    while rest:
        word = rest.pop(0)
        option = re.fullmatch(r"(\+\+|--)([A-Za-z][\w.\-]*)(?:=(.*))?", word, re.DOTALL)
        if not option:
            yield Given("", "", [word])
            continue
        key, value, said = option[2].replace("-", "_"), option[3], [word]
        if value is None and rest and not rest[0].startswith(("++", "--")):
            value = rest.pop(0)
            said.append(value)
        elif value and option[1] == "++" and value[0] in "'\"" and value[0] == value[1:][-1:]:
            value = value[1:-1]  # hydra takes quotes off
            said = [f"++{key}={value}"]
        inside = list(_yaml(value)) if key == "config" and value else []
        if any(_rule(one) for one in inside):
            yield from inside
        else:  # the parser reads the file, and its messages name it
            yield Given(key, value or "", said)
            yield from (one._replace(words=[]) for one in inside)


def _yaml(path: str) -> Iterator[Given]:
    """The options in a YAML; none where it cannot be read, which the parser will say."""
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            tree = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return
    for key, value in _leaves(tree, ""):
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield Given(key, text, [f"--{key}={text}"], path)


def _leaves(tree: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """``a.b`` and its value, for every value in nested dicts."""
    for key, value in tree.items() if isinstance(tree, dict) else ():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
