"""Fun-ASR's trainer (funasr-train-ds).

Facts: Fun-ASR's finetune.sh, funasr's bin/train_ds.py, train_utils/trainer_ds.py, datasets and schedulers (1.4.16).
"""

from __future__ import annotations

from speechllm.upstream.rules import Note, Refuse, Rule, Use

PROGRAM = "Fun-ASR's trainer"

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
    "scheduler_conf.warmup_steps": Use("scheduler_conf.warmup={}"),
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
