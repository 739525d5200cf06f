"""The command line and the YAML of a run."""

from pathlib import Path

import pytest
import yaml

from speechllm import cli
from speechllm.config import RunConfig, as_dict
from speechllm.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def parse(*words):
    return cli.parse(RunConfig, list(words))


def test_yaml_then_overrides_in_both_forms(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("optim_conf: {lr: 0.5}\nllm_conf:\n  lora_conf: {r: 3}\ntrain_conf: {max_epoch: 2}\n")
    config = parse(f"--config={path}", "++llm_conf.freeze=true", "--train_conf.max_epoch=7", "--optim_conf.lr", "1e-3")
    assert (config.optim_conf.lr, config.train_conf.max_epoch) == (1e-3, 7)
    assert config.llm_conf.freeze and config.llm_conf.lora_conf.r == 3 and not config.audio_encoder_conf.freeze


def test_the_resolved_config_reads_back_as_it_was(tmp_path):
    config = parse("++dataset_conf.speed_perturb=[0.9,1.0]", "++optim_conf.betas=[0.8,0.9]", "++model=a b$(c)'d")
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(as_dict(config)))
    assert parse("--config", str(path)) == config


@pytest.mark.parametrize(
    "words,said",
    [
        (["++llm_conf.freez=true"], "llm_conf.freez.*Did you mean llm_conf.freeze"),
        (["++lr=1"], "unknown option lr.*Did you mean optim_conf.lr"),
        (["++train_conf.max_epoch=many"], "train_conf.max_epoch.*many"),
        (["++dataset_conf.batch_type=tokens"], "batch_type"),
        (["left", "over"], "left"),
    ],
)
def test_what_is_not_an_option_is_refused_by_name(words, said):
    with pytest.raises(UserError, match=said):
        parse(*words)


@pytest.mark.parametrize(
    "text,said",
    [
        ("dataset_conf: {batch_sizee: 3}", "batch_sizee.*Did you mean dataset_conf.batch_size"),
        ("modell: x", "modell.*Did you mean model"),
        ("llm_conf: {lora_conf: {rr: 3}}", "Did you mean llm_conf.lora_conf.r"),
        ("train_conf: [", "not found|expected|parsing"),
    ],
)
def test_an_unknown_key_of_the_yaml_is_refused_with_the_file(tmp_path, text, said):
    path = tmp_path / "bad.yaml"
    path.write_text(text + "\n")
    with pytest.raises(UserError, match=said) as caught:
        parse(f"--config={path}")
    assert "bad.yaml" in str(caught.value)


SHIPPED = sorted([*ROOT.glob("conf/*.yaml"), *ROOT.glob("egs/*/*/conf/*.yaml")])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_shipped_yaml_loads(path):
    if path.name == "tiny_model.yaml":
        import sys

        sys.path.insert(0, str(ROOT / "tools"))
        from make_tiny_model import Options

        options = cli.parse(Options, [f"--config={path}", "++output_dir=x", "++text_files=[y]"])
        assert set(options.sizes) >= {"audio_config", "text_config"}
    else:
        assert cli.parse(RunConfig, [f"--config={path}"]) != RunConfig()


def test_an_unknown_option_of_a_tool_exits_with_2(tool):
    done = tool("train", "++train_conf.max_epok=3")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == [
        "error: unknown option train_conf.max_epok. Did you mean train_conf.max_epoch? --help lists all options"
    ]
