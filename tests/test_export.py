"""Checkpoints from one layout into the other: bytes kept, the same text, and what a user must know said."""

import json
import os
import shutil

import pytest
import torch
from test_native import our_texts, their_texts, weights
from tiny import SIZES, WORDS, add_ctc, make_corpus, make_model

from speechllm.checkpoint import export, open_model, save_model
from speechllm.errors import UserError
from speechllm.formats.jsonl import JsonlFile
from speechllm.sample import Prompt


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    make_model(folder / "hf", spread=0.3)
    add_ctc(make_model(folder / "native", format="funasr", spread=0.3))
    state = {
        name: tensor.bfloat16() if "llm" in name else tensor for name, tensor in weights(folder / "native").items()
    }
    torch.save({"state_dict": state}, folder / "native" / "model.pt")
    return folder


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return list(JsonlFile(make_corpus(tmp_path_factory.mktemp("corpus"), 12)))


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_native_to_hf_and_back_is_the_same_to_the_byte(home, tool, tmp_path, samples, monkeypatch):
    there = tool("export", f"++model_dir={home}/native", "++format=hf", "++output_dir=hf")
    assert there.returncode == 0, there.stderr
    assert "hears the first T/8" in there.stderr and "plain transformers does not know" in there.stderr
    back = tool("export", "++model_dir=hf", "++format=funasr", "++output_dir=back")
    assert back.returncode == 0 and "WARNING" not in back.stderr, back.stderr
    first, last = weights(home / "native"), weights(tmp_path / "back")
    assert set(first) == set(last) and any(name.startswith("ctc") for name in first)
    for name, tensor in first.items():
        assert tensor.dtype == last[name].dtype and torch.equal(tensor, last[name]), name
    assert tree(tmp_path / "back") == sorted([*tree(home / "native"), "speechllm.json"])
    for name in tree(home / "native"):
        if not name.endswith((".pt", ".yaml", "configuration.json")):
            assert (tmp_path / "back" / name).read_bytes() == (home / "native" / name).read_bytes()
    expected = our_texts(home / "native", samples)
    assert our_texts(tmp_path / "hf", samples) == our_texts(tmp_path / "back", samples) == expected
    assert their_texts(tmp_path / "back", samples, monkeypatch) == expected


def test_an_hf_checkpoint_as_native_hears_all_frames_in_funasr_too(home, tmp_path, caplog, samples, monkeypatch):
    export(str(home / "hf"), "ms", "funasr", str(tmp_path / "native"))
    assert "upstream's trainer ignores that key" in caplog.text
    texts = our_texts(home / "hf", samples)
    assert our_texts(tmp_path / "native", samples) == their_texts(tmp_path / "native", samples, monkeypatch) == texts
    assert len(set(texts)) > 6


def test_plain_transformers_opens_the_hf_export(home, tmp_path):
    """Its class, its own loader: the tensors are those of the native file, under the names of its own table."""
    from transformers import FunAsrNanoForConditionalGeneration

    export(str(home / "native"), "ms", "hf", str(tmp_path / "hf"))
    model, report = FunAsrNanoForConditionalGeneration.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(report.values())
    state, native = model.state_dict(), weights(home / "native")
    q, _, v = native["audio_encoder.encoders.0.self_attn.linear_q_k_v.weight"].chunk(3)
    assert torch.equal(state["model.audio_tower.layers.1.self_attn.q_proj.weight"], q)
    assert torch.equal(state["model.audio_tower.layers.1.self_attn.v_proj.weight"], v)
    assert torch.equal(state["lm_head.weight"].bfloat16(), native["llm.lm_head.weight"])


def test_what_a_native_checkpoint_has_beside_lives_through_training_as_hf(home, tmp_path):
    export(str(home / "native"), "ms", "hf", str(tmp_path / "hf"))
    opened = open_model(str(tmp_path / "hf"))
    (tmp_path / "run").mkdir()
    save_model(opened.family, opened.task, opened.model, Prompt(before="S："), 9, str(tmp_path / "run"))
    assert tree(tmp_path / "run" / "funasr") == tree(tmp_path / "hf" / "funasr")
    export(str(tmp_path / "run"), "ms", "funasr", str(tmp_path / "native"))
    assert set(weights(tmp_path / "native")) == set(weights(home / "native"))
    assert json.loads((tmp_path / "native" / "speechllm.json").read_text())["prompt"]["before"] == "S："


def test_a_finished_model_can_be_written_again(home, tmp_path):
    """As a run that was killed while it finished does: folders inside the checkpoint are there already."""
    opened = open_model(str(home / "native"))
    for _ in range(2):
        save_model(opened.family, opened.task, opened.model, opened.prompt, 9, str(tmp_path))
    assert tree(tmp_path) == sorted([*tree(home / "native"), "speechllm.json"])
    assert set(os.listdir(tmp_path)) == set(os.listdir(home / "native")) | {"speechllm.json"}


def test_refusals(home, tool, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").touch()
    done = tool("export", f"++model_dir={home}/hf", "++format=funasr", "++output_dir=full")
    assert done.returncode == 1 and "error: full is not empty; give another ++output_dir" in done.stderr
    with pytest.raises(UserError, match="fun_asr_nano is not written as onnx; formats: hf, funasr"):
        export(str(home / "hf"), "ms", "onnx", str(tmp_path / "out"))
    shutil.copytree(home / "native", tmp_path / "broken")
    (tmp_path / "broken" / "model.pt").unlink()
    with pytest.raises(UserError, match=r"model.pt: no such file"):
        export(str(tmp_path / "broken"), "ms", "hf", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    (tmp_path / "checkpoint-7").mkdir()
    shutil.copy(home / "hf" / "model.safetensors", tmp_path / "checkpoint-7" / "trained.safetensors")
    with pytest.raises(UserError, match=r"the tensors of a run, and .*run.yaml, which says of which, is not there"):
        export(str(tmp_path / "checkpoint-7"), "ms", "hf", str(tmp_path / "out"))


def test_the_mini_recipes_model_can_be_made_native(tool, tmp_path, samples, monkeypatch):
    (tmp_path / "text").write_text("".join(f"u{i} {word}\n" for i, word in enumerate(WORDS)))
    (tmp_path / "sizes.yaml").write_text(json.dumps({"sizes": SIZES}))
    words = ["++text_files=[text]", "++vocab_size=300", "++output_dir=tiny"]
    done = tool("make_tiny_model", "--config=sizes.yaml", *words, "++format=onnx")
    assert done.returncode == 1 and "formats: hf, funasr" in done.stderr
    done = tool("make_tiny_model", "--config=sizes.yaml", *words, "++format=funasr")
    assert done.returncode == 0, done.stderr
    assert our_texts(tmp_path / "tiny", samples[:2]) == their_texts(tmp_path / "tiny", samples[:2], monkeypatch)
