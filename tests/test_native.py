"""FunASR's own layout, against the installed funasr: the same numbers, the same text, files that it opens.

Golden values come from funasr's own classes on the same checkpoint. Its random noise on the waveform (dither) is off;
torchaudio, which its time stamps need, is replaced where there is a CTC decoder.
"""

import logging
import os
import pickle
import shutil
import zipfile

import pytest
import torch
import yaml
from tiny import add_ctc, make_corpus, make_model

from speechllm import audio
from speechllm.batching import collate
from speechllm.checkpoint import export, open_model
from speechllm.config import DecodeOptions
from speechllm.decode import batches, predict
from speechllm.errors import UserError
from speechllm.formats.jsonl import JsonlFile
from speechllm.models import open_family
from speechllm.models.fun_asr_nano.features import heard
from speechllm.sample import Prompt

TOKENS = 12  # a random model does not end


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return JsonlFile(make_corpus(tmp_path_factory.mktemp("corpus"), 200))


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("native") / "model", format="funasr", spread=0.3)


@pytest.fixture(scope="module")
def ctc(native, tmp_path_factory):
    return add_ctc(shutil.copytree(native, tmp_path_factory.mktemp("ctc") / "model"))


@pytest.fixture(params=["native", "ctc"])
def either(request):
    return request.getfixturevalue(request.param)


def upstream(folder):
    """funasr's AutoModel on a folder; it sets the level of all logging, which is put back."""
    from funasr import AutoModel

    level = logging.getLogger().level
    try:
        return AutoModel(
            model=str(folder),
            device="cpu",
            ncpu=1,
            disable_update=True,
            disable_pbar=True,
            frontend_conf={"dither": 0.0},
        )
    finally:
        logging.getLogger().setLevel(level)


def their_texts(folder, samples, monkeypatch):
    monkeypatch.setattr("funasr.models.fun_asr_nano.model.forced_align", lambda *_: [])
    model = upstream(folder)
    said = (model.generate(input=[s.clip.source], cache={}, batch_size=1, max_length=TOKENS)[0] for s in samples)
    return [" ".join(row["text"].split()) for row in said]


def our_texts(folder, samples):
    opened = open_model(str(folder))
    options = DecodeOptions(max_new_tokens=TOKENS, num_workers=0)
    chosen = batches([sample.speech_length for sample in samples], options.batch_size)
    rows = [row for some in predict(opened.family, opened.task, opened.model, samples, options, chosen) for row in some]
    return [" ".join(row["text"].split()) for _, row in sorted(rows, key=lambda row: row[0])]


def asked(model, sample):
    """An utterance in funasr's words, and what it needs to read it."""
    messages = model.model.generate_chatml("语音转写：", sample.clip.source)
    messages[-1]["content"] = sample.text
    return messages, {name: model.kwargs[name] for name in ("tokenizer", "frontend", "device", "dataset_conf")}


def weights(folder):
    return torch.load(folder / "model.pt", weights_only=True)["state_dict"]


def edit(folder, change):
    """Change config.yaml in place."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    change(config)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_encoder_adaptor_and_logits_equal_upstreams(either, corpus):
    theirs, samples = upstream(either), [corpus[i] for i in range(5)]
    family = open_family("fun_asr_nano", str(either))
    model = family.load()
    rows = [family.encode(audio.read(sample.clip), sample.prompt, None, None) for sample in samples]
    batch = collate(rows, family.fields(generating=False))
    with torch.no_grad():
        encoded = model.model.audio_tower(batch["input_features"], batch["input_features_mask"]).last_hidden_state
        adapted = model.model.multi_modal_projector(encoded, batch["input_features_mask"])
        logits = family.head(model)(family.hidden(model, batch).text)
        for i, sample in enumerate(samples):
            messages, given = asked(theirs, sample)
            embedded, _, _, ids, between = theirs.model.inference_prepare([messages], None, ["k"], **given)
            frames = between["encoder_out"].shape[1]
            assert (encoded[i, :frames] - between["encoder_out"][0]).abs().max() < 1e-4
            assert (adapted[i, :frames] - between["audio_adaptor_out"][0]).abs().max() < 1e-4
            expected = theirs.model.llm(inputs_embeds=embedded).logits[0]
            assert len(expected) == ids.shape[1] == len(rows[i]["input_ids"])
            assert (logits[i, : len(expected)] - expected).abs().max() < 1e-4


def test_the_loss_equals_upstreams(native, corpus):
    """funasr's own forward: shifted cross-entropy, the mean over the answer's tokens and its end mark."""
    from speechllm.tasks import open_task

    theirs, family = upstream(native), open_family("fun_asr_nano", str(native))
    model, task = family.load(), open_task("sft", family)
    for sample in (corpus[0], corpus[1]):
        messages, given = asked(theirs, sample)
        batch = theirs.model.data_load_speech(theirs.model.data_template(messages), **given)
        batch["speech_lengths"], batch["labels_ids"] = batch["speech_lengths"][0], batch["labels_ids"][None]
        with torch.no_grad():
            expected = theirs.model(**batch)[0]
            row = collate([task.example(family, sample, audio.read(sample.clip), None)], family.fields(False))
            loss = task.loss(family, model, row, task.counts(row))
        assert loss.item() == pytest.approx(expected.item(), abs=1e-4)


@pytest.mark.parametrize("key, value", [("do_think", False), ("sys_prompt", False)])
def test_the_prompt_follows_the_checkpoints_own_keys_as_upstream_does(native, corpus, tmp_path, key, value):
    folder = edit(shutil.copytree(native, tmp_path / "m"), lambda config: config["dataset_conf"].update({key: value}))
    theirs = upstream(folder)
    messages, given = asked(theirs, corpus[0])
    ids = theirs.model.data_load_speech(theirs.model.data_template(messages), **given)["source_ids"]
    family = open_family("fun_asr_nano", str(folder))
    row = family.encode(audio.read(corpus[0].clip), Prompt(), None, None)
    ours = [0 if i == family.config.audio_token_id else i for i in row["input_ids"].tolist()]
    assert ours == ids[0].tolist()  # funasr writes 0 where audio frames go


def test_the_first_eighth_of_the_frames_is_heard():
    """By hand, from funasr's three halvings, each rounded up: 1 s has 17 stacked frames, 10 s have 167."""
    assert [heard(frames) for frames in (1, 2, 8, 9, 16, 17, 167)] == [1, 1, 1, 2, 2, 3, 21]


def test_decoded_in_batches_the_text_equals_upstreams_file_by_file(either, corpus, monkeypatch):
    samples = list(corpus)
    ours = our_texts(either, samples)
    assert ours == their_texts(either, samples, monkeypatch)
    assert len(set(ours)) > 50  # the audio matters


def test_a_finetuned_model_is_upstreams_too_wherever_it_is_moved(ctc, corpus, tool, tmp_path, monkeypatch):
    """LoRA on the LLM, the adaptor in full, the encoder frozen: the frozen and the CTC tensors keep their bytes."""
    done = tool(
        "train",
        f"++model={ctc}",
        f"++train_data_set_list={corpus.path}",
        f"++valid_data_set_list={corpus.path}",
        "++output_dir=run",
        "++train_conf.max_epoch=1",
        "++dataset_conf.batch_type=example",
        "++dataset_conf.batch_size=50",
        "++dataset_conf.num_workers=0",
        "++optim_conf.lr=0.01",
        "++audio_encoder_conf.freeze=true",
        "++llm_conf.use_lora=true",
        "++max_new_tokens=4",
    )
    assert done.returncode == 0, done.stderr
    assert "the LLM hears the first T/8 of its T frames" in done.stderr
    before, after = weights(ctc), weights(tmp_path / "run")
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert set(before) == set(after)
    assert same >= {name for name in before if name.startswith(("audio_encoder.", "ctc"))}
    assert not same & {name for name in before if name.startswith("audio_adaptor.") or ".q_proj." in name}

    run, samples = shutil.move(tmp_path / "run", tmp_path / "elsewhere"), [corpus[i] for i in range(20)]
    ours = our_texts(run, samples)
    assert ours == their_texts(run, samples, monkeypatch) and ours != our_texts(ctc, samples)
    assert {"Qwen3-0.6B", "model.pt", "config.yaml", "configuration.json", "speechllm.json"} <= set(os.listdir(run))

    (checkpoint,) = run.glob("checkpoint-*")  # the only one, hence the one that the finished model is made of
    assert our_texts(checkpoint, samples) == ours
    for format in ("funasr", "hf"):
        export(str(checkpoint), "ms", format, str(tmp_path / f"as_{format}"))
    exported = weights(tmp_path / "as_funasr")
    assert set(exported) == set(after) and all(torch.equal(exported[name], after[name]) for name in after)
    assert our_texts(tmp_path / "as_hf", samples) == ours


def test_what_was_not_trained_keeps_its_type_and_bytes(native, tmp_path):
    """A checkpoint in bfloat16: saved again, its tensors are the same; a trained one loses nothing to rounding."""
    folder = edit(shutil.copytree(native, tmp_path / "m"), lambda config: config["llm_conf"].update(llm_dtype="bf16"))
    stored = {name: tensor.bfloat16() if "llm" in name else tensor for name, tensor in weights(folder).items()}
    torch.save({"state_dict": stored}, folder / "model.pt")
    family = open_family("fun_asr_nano", str(folder))
    model = family.load()
    family.save(model, str(tmp_path / "same"))
    again = weights(tmp_path / "same")
    assert all(
        again[name].dtype == tensor.dtype and torch.equal(again[name], tensor) for name, tensor in stored.items()
    )
    assert yaml.safe_load((tmp_path / "same" / "config.yaml").read_text())["llm_conf"]["llm_dtype"] == "bf16"

    with torch.no_grad():
        model.model.language_model.norm.weight += 1e-6
    family.save(model, str(tmp_path / "trained"))
    again = weights(tmp_path / "trained")
    assert {name for name, tensor in stored.items() if again[name].dtype != tensor.dtype} == {"llm.model.norm.weight"}
    assert torch.equal(again["llm.model.norm.weight"], model.model.language_model.norm.weight)
    # or funasr would round it as it loads it
    assert yaml.safe_load((tmp_path / "trained" / "config.yaml").read_text())["llm_conf"]["llm_dtype"] == "fp32"


def test_absolute_paths_of_upstreams_own_training_become_relative(native, corpus, tmp_path, monkeypatch):
    """Upstream's trainer writes config.yaml with the paths of its machine, and the LLM's folder stays elsewhere."""
    folder = shutil.copytree(native, tmp_path / "theirs")
    llm = shutil.move(folder / "Qwen3-0.6B", tmp_path / "cache")

    def absolute(config):
        config["llm_conf"]["init_param_path"] = config["tokenizer_conf"]["init_param_path"] = str(llm)
        config |= {"train_data_set_list": "/data/train.jsonl", "output_dir": str(folder)}

    edit(folder, absolute)
    (folder / "configuration.json").unlink()
    family = open_family("fun_asr_nano", str(folder))
    family.save(family.load(), str(tmp_path / "ours"))
    shutil.rmtree(llm)
    shutil.rmtree(folder)
    for name in ("config.yaml", "configuration.json"):
        assert str(tmp_path) not in (tmp_path / "ours" / name).read_text()
    moved = shutil.move(tmp_path / "ours", tmp_path / "moved")
    assert their_texts(moved, [corpus[0]], monkeypatch) == our_texts(native, [corpus[0]])


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda c: c["frontend_conf"].pop("lfr_m"), r"frontend_conf.lfr_m: 1 \(not 7\)"),
        (lambda c: c.update(model="SenseVoiceSmall"), r"model: SenseVoiceSmall \(not FunASRNano\)"),
        (lambda c: c["audio_adaptor_conf"].update(downsample_rate=2), r"downsample_rate: 2 \(not 1\)"),
        (lambda c: c["audio_encoder_conf"].update(num_blocks=3), r"missing: .*audio_encoder.encoders.1.norm1.weight"),
        (lambda c: c["audio_encoder_conf"].update(tp_blocks=0), r"unexpected: .*audio_encoder.tp_encoders.0"),
        (lambda c: c["audio_encoder_conf"].update(linear_units=31), r"mismatched_keys.*audio_tower.layers.0.mlp.fc1"),
    ],
)
def test_a_config_that_is_not_the_weights_is_refused(native, tmp_path, change, said):
    folder = edit(shutil.copytree(native, tmp_path / "m"), change)
    with pytest.raises(UserError, match=said):
        open_family("fun_asr_nano", str(folder)).load()


def test_missing_and_unexpected_tensors_are_listed(native, tmp_path):
    folder = shutil.copytree(native, tmp_path / "m")
    state = weights(folder)
    state["llm.model.layers.0.self_attn.q_proj.lora_A"] = state.pop("audio_adaptor.linear1.bias")
    torch.save({"state_dict": state}, folder / "model.pt")
    with pytest.raises(UserError, match=r"missing: \['audio_adaptor.linear1.bias'\], unexpected: \['llm.*lora_A'\]"):
        open_family("fun_asr_nano", str(folder)).load()


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_would_run_code_is_refused(native, tmp_path, monkeypatch, zipped):
    folder = shutil.copytree(native, tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Bomb()}, folder / "model.pt", _use_new_zipfile_serialization=zipped)
    assert zipfile.is_zipfile(folder / "model.pt") == zipped
    with pytest.raises(UserError, match=r"model.pt: refused, since it holds more than tensors"):
        open_family("fun_asr_nano", str(folder)).load()
    (folder / "model.pt").write_bytes(pickle.dumps(Bomb(), protocol=2))
    with pytest.raises(UserError, match=r"model.pt: refused"):
        open_family("fun_asr_nano", str(folder)).load()
    assert not (tmp_path / "exploded").exists()


def test_an_incomplete_checkpoint_is_named(native, tmp_path):
    folder = shutil.copytree(native, tmp_path / "m")
    data = (folder / "model.pt").read_bytes()
    (folder / "model.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"model.pt: cannot be read: .*download it again"):
        open_family("fun_asr_nano", str(folder)).load()
    (folder / "model.pt").unlink()
    with pytest.raises(UserError, match=r"model.pt: no such file"):
        open_family("fun_asr_nano", str(folder)).load()
    shutil.rmtree(folder / "Qwen3-0.6B")
    with pytest.raises(UserError, match=r"llm_conf.init_param_path: Qwen3-0.6B, and there is no such folder"):
        open_family("fun_asr_nano", str(folder))
