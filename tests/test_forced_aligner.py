"""Qwen3-ForcedAligner against plain transformers and qwen-asr; its two layouts; what is refused."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from aligner import TEXTS, as_published, batch_of, logits, make_aligner, utterances, wave
from safetensors.torch import load_file, save_file

from speechllm.boundaries import repair
from speechllm.checkpoint import export, merge_lora, open_model, save_model, set_trainable
from speechllm.config import DecodeOptions, RunConfig
from speechllm.errors import UserError
from speechllm.models import family_of, open_family
from speechllm.tasks import open_task

ROOT = Path(__file__).resolve().parents[1]
NAME = "qwen3_forced_aligner"
ODD = [
    "北",
    "京",
    "hello",
    "it's",
    "カタカナ",
    "ひらがな",
    "한국어",
    "e\u0301",
    "\uf90a",
    "\U00020000",
    "ﬁ",
    "x\u200dy",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("aligners")
    make_aligner(folder / "hf")
    make_aligner(folder / "qwen", "qwen")
    return folder


@pytest.fixture(scope="module")
def pairs():
    return list(utterances(6))


def opened(folder):
    family = open_family(NAME, str(folder))
    return family, family.load()


def align(family, model, pairs):
    """Rows as qwen-asr would have them: by argmax, words of no length left as they are."""
    options = DecodeOptions(boundaries="argmax", zero_length=True)
    with torch.inference_mode():
        return open_task("alignment", family).predict(family, model, batch_of(family, pairs), options)


def tree(folder):
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


def same_weights(one, other):
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return list(first) == list(second) and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


def change(folder, name, **keys):
    """Other values in a JSON file of a checkpoint; None removes a key."""
    said = json.loads((folder / name).read_text()) | keys
    (folder / name).write_text(json.dumps({key: value for key, value in said.items() if value is not None}))


# ---- plain transformers


def test_logits_and_times_are_those_of_transformers_own_pipeline(home, pairs):
    from transformers import AutoProcessor, Qwen3ASRForTokenClassification

    processor = AutoProcessor.from_pretrained(home / "hf")
    assert processor.timestamp_segment_time == 80
    plain = Qwen3ASRForTokenClassification.from_pretrained(home / "hf", attn_implementation="sdpa").eval()
    family, model = opened(home / "hf")
    for samples, text in pairs:
        inputs, (words,) = processor.prepare_forced_aligner_inputs([samples], text)
        with torch.inference_mode():
            whole = plain(**inputs).logits
        slots = inputs["input_ids"] == plain.config.timestamp_token_id
        batch = batch_of(family, [(samples, text)])
        assert torch.equal(batch["input_ids"], inputs["input_ids"])
        assert family.words(batch) == [words] and family.slots(batch) == [2 * len(words)]
        with torch.inference_mode():
            ours = family.slot_logits(model, batch)
        torch.testing.assert_close(ours, whole[slots], atol=1e-5, rtol=1e-5)
        assert ours.std() > 0.3  # or equal logits would say little
        items = processor.decode_forced_alignment(whole, inputs["input_ids"], [words], plain.config.timestamp_token_id)
        (row,) = align(family, model, [(samples, text)])
        theirs = np.minimum([[item["start_time"], item["end_time"]] for item in items[0]], len(samples) / 16000)
        assert row["timestamps"] == pytest.approx(theirs, abs=1e-3)


def test_batches_of_sixteen_and_of_one_give_the_same_classes(home):
    family, model = opened(home / "hf")
    some = list(utterances(16))
    whole = align(family, model, some)
    single = [align(family, model, [pair])[0] for pair in some]
    assert [row["classes"] for row in whole] == [row["classes"] for row in single]
    assert [row["timestamps"] for row in whole] == [row["timestamps"] for row in single]
    assert len({place for row in whole for place in row["classes"]}) > 10
    for row, (samples, _) in zip(whole, some, strict=True):
        assert max(end for _, end in row["timestamps"]) <= len(samples) / 16000 + 1e-4


def test_words_come_back_letter_by_letter(home):
    from speechllm.batching import collate

    family = open_family(NAME, str(home / "hf"))
    rows = [family.encode(wave(1), words) for words in (ODD, ["a"], ODD[::-1])]
    assert family.words(collate(rows, family.fields(True))) == [ODD, ["a"], ODD[::-1]]


def test_words_are_split_as_the_language_has_it(home):
    family = open_family(NAME, str(home / "hf"))
    assert family.split("你好，world! It's 3 o'clock。", "Chinese") == ["你", "好", "world", "It's", "3", "o'clock"]
    for language in ("Japanese", "ja"):
        try:
            assert len(family.split("今日はいい天気です", language)) < 9  # words, not letters
        except UserError as error:
            assert "nagisa" in str(error)


def test_audio_longer_than_the_classes_is_refused(home):
    family = open_family(NAME, str(home / "hf"))
    with pytest.raises(UserError, match=r"20.5 s, and the model's classes end at 20 s; cut audio and text"):
        family.encode(wave(20.5), ["a"])


# ---- two layouts


def test_both_layouts_give_the_same_logits_and_either_is_told(home, pairs, tmp_path):
    export(str(home / "hf"), "ms", "qwen", str(tmp_path / "qwen"))
    export(str(home / "qwen"), "ms", "hf", str(tmp_path / "hf"))
    expected = logits(*opened(home / "hf"), pairs)
    for folder in (home / "qwen", tmp_path / "qwen", tmp_path / "hf"):
        assert family_of(str(folder)) == NAME
        family, model = opened(folder)
        assert family.format == folder.name and family.step == 0.08 and family.classes == 250
        assert torch.equal(logits(family, model, pairs), expected), folder
    names = set(load_file(home / "qwen" / "model.safetensors"))
    assert names == set(load_file(tmp_path / "qwen" / "model.safetensors"))
    assert {"thinker.lm_head.weight", "thinker.audio_tower.proj1.bias", "thinker.model.norm.weight"} <= names
    assert not [name for name in names if not name.startswith("thinker.")]


@pytest.mark.parametrize("kind", ["hf", "qwen", "published"])
def test_there_and_back_is_the_same_to_the_byte(home, kind, tmp_path, pairs):
    first, formats = home / kind, ("qwen", "hf") if kind == "hf" else ("hf", "qwen")
    if kind == "published":
        first = as_published(shutil.copytree(home / "qwen", tmp_path / "published"))
    there, back = tmp_path / "there", tmp_path / "back"
    export(str(first), "ms", formats[0], str(there))
    export(str(there), "ms", formats[1], str(back))
    assert same_weights(first, back)
    assert {name for name in tree(back) if "/" not in name} == tree(first) | {"speechllm.json"}
    for name in tree(first) - {"model.safetensors", "config.json"}:
        assert (back / name).read_bytes() == (first / name).read_bytes(), name
    one, two = (json.loads((folder / "config.json").read_text()) for folder in (first, back))
    assert without_types(one) == without_types(two) and two["dtype"] == one["dtype"]
    assert torch.equal(logits(*opened(first), pairs[:3]), logits(*opened(there), pairs[:3]))


def without_types(said):
    parts = {key: without_types(value) if isinstance(value, dict) else value for key, value in said.items()}
    return {key: value for key, value in parts.items() if key != "dtype"}


def test_the_hubs_original_opens_in_plain_transformers_once_exported(home, tmp_path):
    from transformers import AutoModelForTokenClassification, AutoProcessor

    published = as_published(shutil.copytree(home / "qwen", tmp_path / "published"))
    export(str(published), "ms", "hf", str(tmp_path / "hf"))
    model, report = AutoModelForTokenClassification.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(report.values()) and model.dtype == torch.bfloat16 and model.config.num_labels == 250
    inputs, words = AutoProcessor.from_pretrained(tmp_path / "hf").prepare_forced_aligner_inputs([wave(1.2)], TEXTS[1])
    assert words == [["北", "京", "欢", "迎", "你", "hello"]]
    assert int((inputs["input_ids"] == model.config.timestamp_token_id).sum()) == 12
    assert (tmp_path / "hf" / "qwen" / "generation_config.json").is_file()


def test_the_tool_writes_either_layout(home, tool, tmp_path):
    done = tool("export", f"++model_dir={home}/hf", "++format=qwen", "++output_dir=qwen")
    assert done.returncode == 0, done.stderr
    assert open_family(NAME, str(tmp_path / "qwen")).format == "qwen"
    with pytest.raises(UserError, match=f"{NAME} is not written as funasr; formats: hf, qwen"):
        export(str(home / "hf"), "ms", "funasr", str(tmp_path / "out"))


@pytest.mark.parametrize("format", ["hf", "qwen"])
def test_training_keeps_the_layout_and_the_type_of_what_it_left_alone(home, format, tmp_path):
    source = shutil.copytree(home / format, tmp_path / "half")
    state = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(source / "model.safetensors").items()}
    save_file(state, source / "model.safetensors", {"format": "pt"})
    found = open_model(str(source))
    with torch.no_grad():
        found.model.score.weight += 1e-4
    (tmp_path / "run").mkdir()
    save_model(found.family, found.task, found.model, found.prompt, 9, str(tmp_path / "run"))
    assert tree(tmp_path / "run") == tree(source) | {"speechllm.json"}
    kept = load_file(tmp_path / "run" / "model.safetensors")
    head = "score.weight" if format == "hf" else "thinker.lm_head.weight"
    assert kept[head].dtype == torch.float32
    assert all(torch.equal(kept[name], tensor) for name, tensor in state.items() if name != head)
    assert {kept[name].dtype for name in state if name != head} == {torch.bfloat16}
    assert json.loads((tmp_path / "run" / "config.json").read_text())["dtype"] == "float32"
    again = open_model(str(tmp_path / "run"))
    assert again.family.format == format and torch.equal(again.model.score.weight, found.model.score.weight)


LLM = {f"layers.{i}.self_attn.{name}_proj" for i in range(2) for name in "qkvo"}
ENCODER = {f"layers.{i}.self_attn.{name}" for i in range(2) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}


def test_lora_trained_merged_exported_reloaded_gives_the_same_logits(home, tmp_path, pairs):
    family, model = opened(home / "hf")
    conf = RunConfig()
    for part, names in (("llm", "qkvo"), ("audio_encoder", ("q_proj", "k_proj", "v_proj", "out_proj"))):
        part = conf.part(part)
        part.use_lora, part.lora_conf.r, part.lora_conf.lora_dropout = True, 4, 0.0
        part.lora_conf.target_modules = [f"{name}_proj" if len(name) == 1 else name for name in names]
    conf.audio_adaptor_conf.freeze = conf.head_conf.freeze = True
    set_trainable(family, model, conf)
    adapted = {name.partition(".lora_A")[0] for name, p in model.named_parameters() if ".lora_A" in name}
    expected = {f"model.language_model.{name}" for name in LLM} | {f"model.audio_tower.{name}" for name in ENCODER}
    assert adapted == expected
    assert not [n for n, p in model.named_parameters() if p.requires_grad and ".lora_" not in n]
    before = logits(family, model, pairs)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
    batch = batch_of(family, pairs)
    target = torch.randint(250, (sum(family.slots(batch)),), generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        torch.nn.functional.cross_entropy(family.slot_logits(model, batch), target).backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = logits(family, model, pairs)
    assert (trained - before).abs().max() > 0.1
    merge_lora(model)
    for format in ("hf", "qwen"):
        folder = tmp_path / format
        folder.mkdir()
        family.save(model, str(folder), format)
        assert (logits(*opened(folder), pairs) - trained).abs().max() < 1e-5, format
        assert not [name for name in load_file(folder / "model.safetensors") if "lora" in name]


# ---- refusals


def test_a_recogniser_is_refused_by_name(home, tmp_path):
    original = shutil.copytree(home / "qwen", tmp_path / "asr")
    inner = json.loads((original / "config.json").read_text())["thinker_config"]
    inner.pop("classify_num")
    change(original, "config.json", thinker_config=inner | {"model_type": "qwen3_asr_thinker"})
    plain = shutil.copytree(home / "hf", tmp_path / "asr-hf")
    change(plain, "config.json", architectures=["Qwen3ASRForConditionalGeneration"])
    for folder in (original, plain):
        with pytest.raises(UserError, match=r"this is Qwen3-ASR, the recogniser, not its forced aligner; give"):
            open_model(str(folder))
    change(plain, "config.json", model_type="qwen3")
    with pytest.raises(UserError, match=r"its config.json says qwen3, not qwen3_asr; give a forced aligner"):
        open_family(NAME, str(plain))


@pytest.mark.parametrize("format", ["hf", "qwen"])
def test_tensors_that_do_not_fit_are_listed(home, tmp_path, format):
    folder = shutil.copytree(home / format, tmp_path / "wrong")
    state = load_file(folder / "model.safetensors")
    head, norm = ("score", "model.language_model") if format == "hf" else ("thinker.lm_head", "thinker.model")
    state.pop(f"{norm}.norm.weight")
    state["talker.extra"] = torch.zeros(3)
    state[f"{head}.weight"] = torch.zeros(7, 32)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="the weights do not fit the model") as told:
        open_family(NAME, str(folder)).load()
    assert all(name in str(told.value) for name in ("language_model.norm.weight", "talker.extra", "score.weight"))


def test_a_broken_config_or_tokenizer_is_refused(home, tmp_path):
    def refused(change_it, match, kind="qwen"):
        folder = shutil.copytree(home / kind, tmp_path / "broken", dirs_exist_ok=True)
        change_it(folder)
        with pytest.raises(UserError, match=match):
            open_family(NAME, str(folder)).load()
        shutil.rmtree(folder)

    inner = json.loads((home / "qwen" / "config.json").read_text())["thinker_config"]
    yarn = inner["text_config"] | {"rope_scaling": {"rope_type": "yarn", "factor": 2}}
    no_text = {key: value for key, value in inner.items() if key != "text_config"}
    refused(lambda f: change(f, "config.json", timestamp_segment_time=None), "config.json lacks timestamp_segment_time")
    refused(lambda f: change(f, "config.json", thinker_config=no_text), "lacks thinker_config.text_config")
    refused(
        lambda f: change(f, "config.json", thinker_config=inner | {"text_config": yarn}), "rope_scaling of type yarn"
    )
    refused(lambda f: (f / "model.safetensors").unlink(), "no model.safetensors in it")
    refused(lambda f: (f / "config.json").unlink(), "no config.json in it, so it is no checkpoint")
    refused(lambda f: (f / "config.json").write_text("{"), "config.json: not JSON")
    refused(
        lambda f: change(f, "config.json", audio_token_id=9), r"of another model.*<\|audio_pad\|> is 5, not 9", "hf"
    )

    def rename(folder):
        path = folder / "tokenizer.json"
        path.write_text(path.read_text().replace("<timestamp>", "<time>"))

    refused(rename, "the tokenizer has no <timestamp>; put that of a forced aligner there")


def test_what_the_original_layout_has_no_place_for_is_refused(tmp_path):
    make_aligner(tmp_path / "hf", token_classification_bias=True)
    assert "score.bias" in load_file(tmp_path / "hf" / "model.safetensors")
    with pytest.raises(UserError, match="no token_classification_bias: True; such a model is written as hf only"):
        export(str(tmp_path / "hf"), "ms", "qwen", str(tmp_path / "qwen"))
    export(str(tmp_path / "hf"), "ms", "hf", str(tmp_path / "again"))
    assert same_weights(tmp_path / "hf", tmp_path / "again")


# ---- qwen-asr


def test_qwen_asr_opens_the_export_and_gives_the_same_times(home, tmp_path, pairs):
    python = os.environ.get("QWEN_ASR_PYTHON")
    if not python:
        pytest.skip("QWEN_ASR_PYTHON is not set to a Python that has qwen-asr; docs/forced_aligner.md says how")
    export(str(home / "hf"), "ms", "qwen", str(tmp_path / "qwen"))
    long_enough = [(samples, text) for samples, text in pairs if 0.5 <= len(samples) / 16000 <= 8]
    rows = []
    for i, (samples, text) in enumerate([*long_enough, *((wave(2 + i / 3, i), TEXTS[i % 4]) for i in range(12))]):
        soundfile.write(tmp_path / f"{i}.wav", samples, 16000, "FLOAT")
        rows.append({"audio_path": str(tmp_path / f"{i}.wav"), "text": text, "key": f"u{i}"})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    script = [python, ROOT / "bench" / "upstream_align.py", tmp_path / "qwen", tmp_path / "rows.jsonl", "Chinese"]
    out = tmp_path / "theirs.jsonl"
    done = subprocess.run([*script, out, "1", "1", tmp_path / "told.json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    family, model = opened(home / "hf")
    for row, line in zip(rows, out.read_text().splitlines(), strict=True):
        theirs = json.loads(line)
        samples, _ = soundfile.read(row["audio_path"], dtype="float32")
        (ours,) = align(family, model, [(samples, row["text"])])
        assert ours["words"] == theirs["words"]
        ends = np.minimum(theirs["timestamps"], len(samples) / 16000)  # random weights hear words beyond the end
        assert np.abs(ours["timestamps"] - ends).max() <= 0.08 + 1e-6
        fixed, _ = repair(np.array(ours["classes"]) * 80)
        assert np.abs(fixed / 1000 - np.ravel(theirs["timestamps"])).max() <= 0.08 + 1e-6
