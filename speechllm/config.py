"""The typed configuration of a training run: FunASR's key names, one YAML per run, overrides on the command line."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Literal

PARTS = ("audio_encoder", "audio_adaptor", "llm", "head")  # of models; what there is of each, the family knows


@dataclass
class LoraConf:
    r: int = 16
    """Rank of the two matrices."""
    lora_alpha: int = 32
    """Scale of the update: lora_alpha / r."""
    lora_dropout: float = 0.05
    target_modules: list[str] = field(default_factory=list)
    """Names of linear layers inside the part, or of what holds them (self_attn); empty: all of them."""


@dataclass
class PartConf:
    """How one part of the model (encoder, adaptor, LLM) is trained."""

    freeze: bool = False
    """Keep its weights, without gradient and dropout."""
    use_lora: bool = False
    """Keep its weights and train low-rank updates beside them."""
    lora_conf: LoraConf = field(default_factory=LoraConf)
    load_in_4bit: bool = False
    """QLoRA: hold its linear layers in 4 bits (NF4, bitsandbytes); needs use_lora and the extra qlora."""


@dataclass
class SpecAugConf:
    """SpecAugment (Park et al., 2019) on the filterbank: masks are zero after mean removal of the utterance."""

    time_masks: int = 0
    time_width: int = 20
    """Widest time mask, in frames of 10 ms."""
    freq_masks: int = 0
    freq_width: int = 10
    """Widest frequency mask, in mel bins."""


@dataclass
class NoiseConf:
    """Recordings of noise, added at a random place."""

    scp: str = ""
    """Kaldi wav.scp of noises; empty: none is added."""
    snr: list[float] = field(default_factory=lambda: [5.0, 20.0])
    """Lowest and highest signal-to-noise ratio, in dB."""
    prob: float = 0.5
    """Share of the utterances that get noise, drawn anew in every epoch."""


@dataclass
class ReverbConf:
    """Reverberation: the utterance convolved with a room's impulse response."""

    scp: str = ""
    """Kaldi wav.scp of impulse responses; empty: no reverberation."""
    prob: float = 0.5
    """Share of the utterances that are reverberated, drawn anew in every epoch."""


@dataclass
class DatasetConf:
    batch_size: int = 6000
    """Budget of one batch on one GPU, as upstream's: longest times rows, in tokens, or rows."""
    batch_type: Literal["token", "example"] = "token"
    """What batch_size counts: frames of 10 ms plus tokens of the text, or utterances."""
    num_workers: int = 4
    """Processes that read audio ahead of the trainer."""
    speed_perturb: list[float] = field(default_factory=list)
    """Each utterance plays at one of these speeds, drawn per epoch; for example [0.9,1.0,1.1]."""
    time_warp: float = 0.0
    """How far the speed wanders within an utterance: 0.25 lets it change every 0.3 s, from 1/1.25 to 1.25; 0: it does
    not. An aligner then has to listen: it cannot tell when a word comes by how long words usually last."""
    volume_perturb: list[float] = field(default_factory=list)
    """Lowest and highest gain in dB, drawn per utterance and epoch; for example [-12,6]."""
    reverb: ReverbConf = field(default_factory=ReverbConf)
    noise: NoiseConf = field(default_factory=NoiseConf)
    spec_aug: SpecAugConf = field(default_factory=SpecAugConf)
    allow_pipes: bool = False
    """Run the shell commands that end in | in place of a path, as Kaldi does."""


@dataclass
class TrainConf:
    max_epoch: int = 50
    accum_grad: int = 1
    """Batches per GPU whose gradients make one step."""
    grad_clip: float = 5.0
    """Largest norm of the gradient; 0: no limit."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the passes through the model; weights and optimiser stay in float32. auto: bfloat16 on a GPU."""
    gradient_checkpointing: bool = False
    """Compute the transformer layers' activations anew in the backward pass: slower, with a fraction of the memory."""
    compile: bool = False
    """torch.compile the LLM; pays on a GPU for runs of hours."""
    use_fsdp: bool = False
    """Shard weights, gradients and optimiser over the GPUs (FSDP2), for models that one GPU cannot train. Each must
    hold the weights alone, to decode the dev set."""
    use_deepspeed: bool = False
    """Shard by DeepSpeed ZeRO as deepspeed_config says; needs the extra deepspeed."""
    deepspeed_config: str = ""
    """JSON of DeepSpeed, ZeRO stage 1 or 2; empty: conf/ds_stage1.json."""
    max_bad_steps: int = 5
    """Steps with a NaN or infinite loss or gradient that are left out, and named; one more ends the run."""
    early_stop: int = 0
    """Validations in a row without a better score that end the run; 0: run all epochs."""
    log_interval: int = 1
    """Steps between lines of the log."""
    validate_interval: int = 0
    """Steps between decodings of the dev set, each with a checkpoint, and at most an epoch; 0: an epoch."""
    save_checkpoint_interval: int = 0
    """Steps between further checkpoints for resuming; 0: only those of validate_interval."""
    keep_nbest_models: int = 5
    """Checkpoints kept, by their score on dev, beside the newest."""
    avg_nbest_model: int = 1
    """Checkpoints averaged into the final model; 1: the best alone."""
    resume: bool = True
    """Go on from the newest checkpoint in output_dir."""
    seed: int = 0


@dataclass
class OptimConf:
    lr: float = 0.0002
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)


@dataclass
class SchedulerConf:
    type: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    warmup: float = 0.05
    """Share of the run's steps in which the learning rate rises; 1 or more: so many steps."""


@dataclass
class AlignmentConf:
    """Forced alignment."""

    slot_prob: float = 0.5
    """Share of the words that get their two slots, drawn anew in every epoch, so that each is found by itself."""
    label_spread: float = 0.0
    """Standard deviation of the target over neighbouring classes, in classes; 0: the nearest class alone."""


@dataclass
class RunConfig:
    """A training run. Every key can stand in the YAML of --config and be overridden by ++key=value."""

    model: str = "FunAudioLLM/Fun-ASR-Nano-2512"
    """Checkpoint to start from: a hub name or a folder."""
    hub: Literal["ms", "hf"] = "ms"
    """Where a hub name is looked up: ModelScope or Hugging Face."""
    family: str = "fun_asr_nano"
    """Architecture of the model: a name in speechllm/models."""
    task: str = "sft"
    """Objective: a name in speechllm/tasks."""
    train_data_set_list: str = ""
    """JSONL to train on, or a file that lists several, one path per line."""
    valid_data_set_list: str = ""
    """JSONL that is decoded to choose the best checkpoint; empty: 5% of the rows of train_data_set_list, at least 1, at
    most 200, chosen by their ids and not trained on."""
    output_dir: str = "./outputs"
    dataset_conf: DatasetConf = field(default_factory=DatasetConf)
    train_conf: TrainConf = field(default_factory=TrainConf)
    optim_conf: OptimConf = field(default_factory=OptimConf)
    scheduler_conf: SchedulerConf = field(default_factory=SchedulerConf)
    audio_encoder_conf: PartConf = field(default_factory=PartConf)
    audio_adaptor_conf: PartConf = field(default_factory=PartConf)
    llm_conf: PartConf = field(default_factory=PartConf)
    head_conf: PartConf = field(default_factory=PartConf)
    freeze_policy: Literal["manual", "auto"] = "manual"
    """auto: the hours of data decide what is trained, as Fun-ASR's authors advise, in place of the freeze flags."""
    ctc_head_weight: float = 0.3
    """Weight of the CTC loss beside the LLM's, for a model that has a CTC head on its adaptor."""
    alignment_conf: AlignmentConf = field(default_factory=AlignmentConf)
    max_new_tokens: int = 512
    """Longest answer, in tokens, when the dev set is decoded, and later when the model is used."""
    normalizer: Literal["mixed", "kana", "basic", "phonemes", "timit39"] = "mixed"
    """What brings the texts of the dev set to one form before they are compared; phonemes, timit39: PER."""

    def part(self, name: str) -> PartConf:
        """The settings of one of the family's parts, such as ``audio_encoder``."""
        return getattr(self, f"{name}_conf")


@dataclass
class AnswerOptions:
    """What decides the answers of a model."""

    max_new_tokens: int = 0
    """Longest answer, in tokens; 0: as in the model's training."""
    vocabulary: Literal["auto", "phonemes", "all"] = "auto"
    """What may be generated: phonemes alone, each with its confidence, or all tokens; auto: phonemes where the model
    learnt nothing else."""
    nbest: int = 1
    """Answers per utterance, found by as many beams; 1: greedy."""
    boundaries: Literal["expectation", "argmax"] = "expectation"
    """Times of words: the expectation over the classes around the best one, or the best one as it is."""
    zero_length: bool = False
    """Let words last 0 s where the model hears it so; or each lasts 20 ms at least."""


@dataclass
class DecodeOptions(AnswerOptions):
    """How a set is decoded."""

    batch_size: int = 12000
    """Budget of a batch in frames of 10 ms: longest times rows."""
    num_workers: int = 2
    """Processes that read audio ahead of the model."""
    allow_pipes: bool = False
    """Run the shell commands that end in | in place of a path, as Kaldi does."""
    max_segment: float = 30.0
    """Longer audio is decoded in pieces of at most so many seconds."""
    vad_model: str = ""
    """What finds the pieces: fsmn-vad, or its folder (through funasr); empty: cuts at quiet points."""
    hub: Literal["ms", "hf"] = "ms"
    """Where names of models are looked up: ModelScope or Hugging Face."""


def as_dict(config: RunConfig) -> dict:
    """Plain lists and dicts, as YAML and JSON hold them."""
    return asdict(config, dict_factory=lambda pairs: {k: list(v) if isinstance(v, tuple) else v for k, v in pairs})
