"""A YAML that is published for fine-tuning Qwen3-ForcedAligner; the trainer that it was made for is not.

A key of transformers' TrainingArguments or of peft's LoraConfig means what it means there, but for what its note says.
"""

from __future__ import annotations

from speechllm.upstream.rules import Note, Refuse, Rule, Same, Use

PROGRAM = "the published YAML of Qwen3-ForcedAligner"

AAS = Note(
    "the best checkpoint is chosen by the error of its times on the dev set (AAS, less is better), not by the loss"
)
TOKENIZER = "the tokenizer is the one in the model's folder"
LENGTH = "the model takes 300 s; what is longer ends the run, by name"

# Per option one rule, or rules by value in lower case, where * is any other value.
OPTIONS: dict[str, Rule | dict[str, Rule]] = {
    "model_name_or_path": Use("model={}", unless="family=qwen3_forced_aligner task=alignment"),
    "text_tokenizer": {
        **dict.fromkeys(["qwen/qwen3-forcedaligner-0.6b", "qwen/qwen3-forcedaligner-0.6b-hf"], Note(TOKENIZER)),
        "*": Same("model_name_or_path", TOKENIZER, f"{TOKENIZER}; leave the option out"),
    },
    # data
    "dataset_name": Use("train_data_set_list={}"),
    "audio_sample_rate": {
        "16000": Note("audio of any rate is brought to the model's 16,000 samples per second"),
        "*": Refuse(
            "the model hears 16,000 samples per second, and audio of any rate is brought to that; leave it out"
        ),
    },
    "max_audio_length": {
        **dict.fromkeys(["300", "300.0"], Note(LENGTH)),
        "*": Refuse(
            f"{LENGTH}, and no row is left out for its length; take such rows out of the JSONL, then leave it out"
        ),
    },
    # steps
    "num_train_epochs": Use("train_conf.max_epoch={}"),
    "per_device_train_batch_size": Use("dataset_conf.batch_type=example dataset_conf.batch_size={}"),
    "gradient_accumulation_steps": Use("train_conf.accum_grad={}"),
    "learning_rate": Use("optim_conf.lr={}"),
    "warmup_steps": Use("scheduler_conf.warmup={}"),
    # what is shown and kept
    "logging_steps": Use("train_conf.log_interval={}"),
    "eval_steps": Use("train_conf.validate_interval={}", why="and at most an epoch"),
    "save_steps": Use("train_conf.save_checkpoint_interval={}"),
    "save_total_limit": Use("train_conf.keep_nbest_models={}", why="the best on the dev set, and the newest besides"),
    "load_best_model_at_end": {
        "true": Note("output_dir holds the best checkpoint as a whole model when the run ends"),
        "*": Refuse("output_dir always gets the best checkpoint; a run's checkpoint-N can be used as it is"),
    },
    "metric_for_best_model": {
        **dict.fromkeys(["loss", "eval_loss"], AAS),
        "*": Refuse("the best checkpoint is chosen by the error of its times on the dev set (AAS); leave it out"),
    },
    "greater_is_better": {"false": AAS, "*": Refuse("of AAS, less is better; leave it out")},
    # what is trained
    "use_peft": {
        "true": Use(
            "llm_conf.use_lora=true audio_encoder_conf.freeze=true audio_adaptor_conf.freeze=true head_conf.freeze=true"
        ),
        "false": Use(
            "llm_conf.use_lora=false audio_encoder_conf.freeze=false audio_adaptor_conf.freeze=false "
            "head_conf.freeze=false",
            why="all is trained, and peft_config has no say",
        ),
        "*": Refuse("give true or false"),
    },
    "peft_config.r": Use("llm_conf.lora_conf.r={}"),
    "peft_config.lora_alpha": Use("llm_conf.lora_conf.lora_alpha={}"),
    "peft_config.lora_dropout": Use("llm_conf.lora_conf.lora_dropout={}"),
    "peft_config.target_modules": Use("llm_conf.lora_conf.target_modules={}", why="in the LLM alone"),
}
