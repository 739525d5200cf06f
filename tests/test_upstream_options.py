"""The options of Fun-ASR's trainer, and what is said of other programs' options: each honoured, or refused by name."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import yaml

from speechllm import cli, upstream
from speechllm.config import RunConfig, as_dict
from speechllm.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
# Every option that finetune.sh of github.com/FunAudioLLM/Fun-ASR passes, with its values.
FINETUNE = shlex.split("""
++model=FunAudioLLM/Fun-ASR-Nano-2512 ++trust_remote_code=true
++train_data_set_list=data/train_example.jsonl ++valid_data_set_list=data/val_example.jsonl
++dataset_conf.data_split_num=1 ++dataset_conf.batch_sampler="BatchSampler" ++dataset_conf.batch_size=6000
++dataset_conf.sort_size=1024 ++dataset_conf.batch_type=token ++dataset_conf.num_workers=4
++train_conf.max_epoch=50 ++train_conf.log_interval=1 ++train_conf.resume=true ++train_conf.validate_interval=2000
++train_conf.save_checkpoint_interval=2000 ++train_conf.effective_save_name_excludes="None"
++train_conf.keep_nbest_models=20 ++train_conf.avg_nbest_model=10 ++train_conf.use_deepspeed=false
++train_conf.deepspeed_config=/absent/deepspeed_conf/ds_stage1.json ++optim_conf.lr=0.0002
++audio_encoder_conf.freeze=true ++audio_adaptor_conf.freeze=true ++llm_conf.freeze=false ++output_dir="./outputs"
""")
# What lora_finetune.sh of github.com/modelscope/FunASR adds.
LORA = ["++llm_conf.use_lora=true", "++lora_only=true", "++llm_conf.freeze=true"]


def parse(*words):
    return cli.parse(RunConfig, upstream.translate(list(words)))


def frozen(config):
    return [getattr(config, f"{name}_conf").freeze for name in ("audio_encoder", "audio_adaptor", "llm")]


def test_what_upstreams_script_says_is_what_conf_finetune_yaml_says():
    theirs, ours = parse(*FINETUNE), parse("--config", str(ROOT / "conf/finetune.yaml"))
    assert theirs.train_conf.deepspeed_config == "/absent/deepspeed_conf/ds_stage1.json"
    theirs.train_conf.deepspeed_config = ""  # unused without use_deepspeed
    assert ours.llm_conf.lora_conf.target_modules == ["q_proj", "v_proj"]  # the default of upstream's model
    theirs.llm_conf.lora_conf.target_modules = ["q_proj", "v_proj"]
    assert as_dict(theirs) == as_dict(ours)
    assert (ours.optim_conf.lr, ours.dataset_conf.batch_size, frozen(ours)) == (2e-4, 6000, [True, True, False])


def test_what_changes_nothing_is_told():
    told = upstream.notes(FINETUNE)
    assert [line.split(":")[0] for line in told] == [
        "trust_remote_code=true",
        "dataset_conf.data_split_num=1",
        "dataset_conf.batch_sampler=BatchSampler",
        "dataset_conf.sort_size=1024",
        "train_conf.effective_save_name_excludes=None",
    ]
    assert "all rows are sorted by length" in told[3]


def test_lora_only_freezes_all_but_lora_as_upstream():
    config = parse(*FINETUNE, *LORA, "++llm_conf.lora_conf.target_modules=[q_proj, o_proj]")
    assert frozen(config) == [True, True, True] and config.llm_conf.use_lora
    assert config.llm_conf.lora_conf.target_modules == ["q_proj", "o_proj"]
    # upstream freezes after the parts' own flags, wherever they stand
    assert frozen(parse("++lora_only=true", "++llm_conf.use_lora=true", "++llm_conf.freeze=false")) == [True] * 3
    off = parse("++lora_only=false", "++llm_conf.use_lora=true", "++audio_encoder_conf.freeze=true")
    assert frozen(off) == [True, False, False]
    with pytest.raises(UserError, match="no part has it; add llm_conf"):
        parse("++lora_only=true")


def test_freeze_false_beside_lora_is_told():
    (told,) = upstream.notes(["++llm_conf.freeze=false", "++llm_conf.use_lora=true"])
    assert told == "llm_conf.freeze=false: its low-rank updates are trained, its weights kept, since use_lora=true"


@pytest.mark.parametrize(
    "word,key,value",
    [
        ("++seed=3", "train_conf.seed", 3),
        ("++train_conf.use_bf16=True", "train_conf.dtype", "bfloat16"),
        ("++train_conf.use_bf16=false", "train_conf.dtype", "float32"),
        ("++llm_conf.llm_dtype=bf16", "train_conf.dtype", "bfloat16"),
        ("++llm_conf.activation_checkpoint=true", "train_conf.gradient_checkpointing", True),
        ("++use_fsdp=true", "train_conf.use_fsdp", True),
        ("++scheduler_conf.warmup_steps=100", "scheduler_conf.warmup", 100),
        ("++deepspeed_config=a b.json", "train_conf.deepspeed_config", "a b.json"),
        ("++hub=huggingface", "hub", "hf"),
        ("++hub=hf", "hub", "hf"),
        ("++llm_conf.freeze=True", "llm_conf.freeze", True),
        ("++llm_conf.freeze=FALSE", "llm_conf.freeze", False),
        ('++model="a b"', "model", "a b"),  # hydra takes quotes off
        ("++output_dir='out'", "output_dir", "out"),
        ("++output_dir=it's", "output_dir", "it's"),
    ],
)
def test_other_names_and_spellings_are_understood(word, key, value):
    found = parse(word)
    for name in key.split("."):
        found = getattr(found, name)
    assert found == value


@pytest.mark.parametrize(
    "word,mend",
    [
        ("++train_conf.use_lora=true", "use llm_conf.use_lora"),
        ("++dataset_conf.batch_sampler=DynamicBatchLocalShuffleSampler", "BatchSampler's"),
        ("++train_conf.effective_save_name_excludes=llm.", "leave the option out"),
        ("++dataset_conf.batch_size_sample_max=10", "dataset_conf.batch_size"),
        ("++dataset_conf.max_token_length=2000", "no row is left out for its length"),
        ("++dataset_conf.shuffle=false", "always shuffled"),
        ("++train_conf.use_fp16=true", "train_conf.dtype=bfloat16"),
        ("++device=cpu", "CUDA_VISIBLE_DEVICES"),
        ("++ctc_weight=0.3", "CTC"),
        ("--freeze-param", "audio_encoder_conf.freeze"),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_what_to_use(word, mend):
    words = [word] if "=" in word else [word, "llm"]
    key = word.lstrip("+-").split("=")[0].replace("-", "_")
    with pytest.raises(UserError) as caught:
        parse(*words)
    assert str(caught.value).startswith(f"{key}=") and mend in str(caught.value)


def test_a_yaml_made_for_upstream(tmp_path):
    path = tmp_path / "run.yaml"
    tree = {
        "model": "a: b",
        "seed": 7,
        "dataset_conf": {"sort_size": 1024, "batch_size": 12},
        "llm_conf": {"use_lora": True, "lora_conf": {"target_modules": ["q_proj"]}},
        "lora_only": True,
        "optim_conf": {"lr": 1e-05},
    }
    path.write_text(yaml.safe_dump(tree))
    config = parse(f"--config={path}", "++dataset_conf.batch_size=13")
    assert (config.model, config.train_conf.seed, config.dataset_conf.batch_size) == ("a: b", 7, 13)
    assert frozen(config) == [True] * 3 and config.llm_conf.lora_conf.target_modules == ["q_proj"]
    assert config.optim_conf.lr == 1e-5
    assert any(line.startswith("dataset_conf.sort_size=1024") for line in upstream.notes([f"--config={path}"]))
    path.write_text("train_conf: {use_lora: true}\n")
    with pytest.raises(UserError, match=r"run.yaml: train_conf.use_lora=true.*use llm_conf.use_lora"):
        parse("--config", str(path))


def test_auto_and_a_typed_flag_contradict_each_other(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("freeze_policy: auto\nllm_conf: {freeze: false}\n")  # as a run's own run.yaml has it
    assert parse(f"--config={path}").freeze_policy == "auto"
    for words in (["++freeze_policy=auto", "++llm_conf.freeze=true"], [f"--config={path}", "--llm_conf.freeze=true"]):
        with pytest.raises(UserError, match=r"freeze_policy=auto decides.*llm_conf.freeze; give one"):
            parse(*words)
    with pytest.raises(UserError, match="lora_only"):
        parse("++freeze_policy=auto", "++lora_only=true", "++llm_conf.use_lora=true")
    assert parse(f"--config={path}", "++freeze_policy=manual", "++llm_conf.freeze=true").llm_conf.freeze


@pytest.mark.parametrize("key", [key for key, rule in upstream.OPTIONS.items() if "*" in rule or key != "hub"])
def test_the_table_hides_no_option_of_ours(key):
    with pytest.raises(UserError, match=f"unknown option {key}"):
        cli.parse(RunConfig, [f"++{key}=1"])


def test_no_option_belongs_to_two_programs():
    assert sum(len(options) for options in upstream.PROGRAMS.values()) == len(upstream.OPTIONS)


def read_by_funasr():
    """What funasr's trainer and the data set of Fun-ASR-Nano look up in their sections of the config."""
    root = Path(importlib.util.find_spec("funasr").origin).parent
    files = {
        "": ["bin/train_ds.py"],
        "train_conf.": ["train_utils/trainer_ds.py"],
        "dataset_conf.": ["datasets/fun_asr_datasets/datasets.py", "datasets/audio_datasets/samplers.py"],
    }
    for section, names in files.items():
        for name in names:
            for key in re.findall(r'kwargs\.get\(\s*"(\w+)"', (root / name).read_text(encoding="utf-8")):
                yield section + key


def test_none_that_funasr_reads_is_taken_silently():
    pytest.importorskip("funasr")
    keys, plain = sorted(set(read_by_funasr())), RunConfig()
    assert len(keys) > 60
    for key in keys:
        outcomes = []
        for value in ("true", "7"):
            word = f"++{key}={value}"
            try:
                changed = parse(word) != plain
            except UserError as error:
                outcomes.append(key in str(error))
            else:
                outcomes.append(changed or any(line.startswith(key) for line in upstream.notes([word])))
        assert any(outcomes), key


def test_the_tool_tells_and_refuses(tool, tmp_path):
    done = tool("train", "++train_conf.use_lora=true")
    assert done.returncode == 2 and done.stderr.startswith("error: train_conf.use_lora=true")
    sets = ["++train_data_set_list=absent.jsonl", "++valid_data_set_list=absent.jsonl"]
    done = tool("train", "++dataset_conf.sort_size=1024", *sets)
    assert done.returncode == 1 and "absent.jsonl: no such file" in done.stderr
    assert "dataset_conf.sort_size=1024: all rows are sorted by length" in (tmp_path / "outputs/train.log").read_text()
