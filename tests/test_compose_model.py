"""tools/compose_model.py: a model from two checkpoints, new phonemes, what is saved, and what is trained of them."""

import json

import pytest
import torch
from composite import SYMBOLS, batch_of, make_composite, make_qwen, make_whisper, queries, tokenizer

from speechllm import checkpoint
from speechllm.batching import collate
from speechllm.config import PartConf, RunConfig
from speechllm.errors import UserError
from speechllm.models import open_family
from speechllm.models.whisper_qwen3.compose import make
from speechllm.tasks import open_task


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_composite(tmp_path_factory.mktemp("composite"), ctc=True, encoder_projector_ds_rate=2)


@pytest.fixture(scope="module")
def family(folder):
    return open_family("whisper_qwen3", str(folder))


@pytest.fixture(scope="module")
def model(family):
    return family.load()


# ---- putting together, extending, saving


def test_put_together_from_two_checkpoints(folder, family, model):
    from transformers import Qwen3ForCausalLM, WhisperModel

    encoder = WhisperModel.from_pretrained(folder.parent / "whisper").encoder.state_dict()
    assert all(torch.equal(model.audio_tower.state_dict()[name], tensor) for name, tensor in encoder.items())
    llm = Qwen3ForCausalLM.from_pretrained(folder.parent / "qwen").state_dict()
    ours = model.language_model.state_dict()
    assert all(torch.equal(ours[name][: len(tensor)], tensor) for name, tensor in llm.items())
    assert not any(str(folder.parent) in path.read_text("utf-8") for path in folder.glob("*.json"))


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_start_from_the_mean_of_their_pieces(tmp_path, tied):
    family = open_family("whisper_qwen3", str(make_composite(tmp_path, tied=tied)))
    llm, before = family.load().language_model, tokenizer()
    for table in (llm.model.embed_tokens.weight, llm.lm_head.weight):
        for symbol, i in family.phonemes.ids.items():
            pieces = before.encode(symbol, add_special_tokens=False)
            assert torch.allclose(table[i], table[pieces].mean(0), atol=1e-6)
    assert (llm.lm_head.weight is llm.model.embed_tokens.weight) == tied


def test_rows_in_reserve_are_taken_first(tmp_path):
    make_qwen(tmp_path / "qwen", spare=50)
    tokenizer(SYMBOLS).save_pretrained(tmp_path / "tokenizer")
    parts = [str(make_whisper(tmp_path / "whisper")), str(tmp_path / "qwen")]
    make(str(tmp_path / "model"), parts, str(tmp_path / "tokenizer"))
    family = open_family("whisper_qwen3", str(tmp_path / "model"))
    assert len(family.load().language_model.model.embed_tokens.weight) == len(tokenizer()) + 50


def test_a_model_learns_the_phonemes_of_another_corpus(tmp_path, folder, family, model):
    more = tokenizer((*SYMBOLS, "ax-h"))
    more.save_pretrained(tmp_path / "tokenizer")
    assert make(str(tmp_path / "model"), [str(folder)], str(tmp_path / "tokenizer"), True) == ["<|ph_ax-h|>"]
    again = open_family("whisper_qwen3", str(tmp_path / "model"))
    grown = again.load()
    assert list(again.phonemes.ids) == [*SYMBOLS, "ax-h"]
    assert torch.equal(grown.ctc_head.weight[:6], model.ctc_head.weight) and len(grown.ctc_head.weight) == 7
    assert torch.equal(grown.projector.linear.weight, model.projector.linear.weight)
    with torch.no_grad():
        row = queries(again)[0]
        batch = collate([row], again.fields(True))
        assert torch.equal(again.hidden(grown, batch).text, family.hidden(model, batch).text)


def test_a_tokenizer_that_moves_tokens_is_refused(tmp_path, folder):
    tokenizer(("zz", *SYMBOLS)).save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(UserError, match="have another id there"):
        make(str(tmp_path / "model"), [str(folder)], str(tmp_path / "tokenizer"))
    assert not (tmp_path / "model").exists()


def test_other_checkpoints_are_refused_by_name(tmp_path):
    make_whisper(tmp_path / "whisper"), make_qwen(tmp_path / "qwen")
    whisper, qwen = str(tmp_path / "whisper"), str(tmp_path / "qwen")
    with pytest.raises(UserError, match="says qwen3, a whisper model is needed"):
        make(str(tmp_path / "a"), [qwen, qwen], "")
    with pytest.raises(UserError, match="says whisper, a qwen3 model is needed"):
        make(str(tmp_path / "a"), [whisper, whisper], "")
    with pytest.raises(UserError, match="says qwen3, not whisper_qwen3"):
        open_family("whisper_qwen3", qwen)
    with pytest.raises(UserError, match="the encoder takes 0 to 30 s"):
        make(str(tmp_path / "a"), [whisper, qwen], "", max_audio_seconds=40.0)


def test_half_precision_stays_on_disk(tmp_path):
    from safetensors.torch import load_file
    from transformers import Qwen3ForCausalLM

    make_qwen(tmp_path / "qwen")
    Qwen3ForCausalLM.from_pretrained(tmp_path / "qwen", dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    tokenizer().save_pretrained(tmp_path / "half")
    make(str(tmp_path / "model"), [str(make_whisper(tmp_path / "whisper")), str(tmp_path / "half")], "")
    family = open_family("whisper_qwen3", str(tmp_path / "model"))
    family.save(family.load(), str(tmp_path / "again"))
    for name in ("model", "again"):
        kinds = {k: t.dtype for k, t in load_file(tmp_path / name / "model.safetensors").items()}
        assert {t for k, t in kinds.items() if k.startswith("language_model")} == {torch.bfloat16}
        assert {t for k, t in kinds.items() if not k.startswith("language_model")} == {torch.float32}


def test_save_and_open_again(family, model, tmp_path):
    family.save(model, str(tmp_path / "copy"))
    again = open_family("whisper_qwen3", str(tmp_path / "copy"))
    theirs = again.load().state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())
    assert again.phonemes.ids == family.phonemes.ids and again.extractor.feature_size == 80
    assert json.loads((tmp_path / "copy" / "config.json").read_text())["ctc_classes"] == len(SYMBOLS) + 1


def test_a_tokenizer_that_outgrew_the_ctc_head_is_refused(family, model, tmp_path):
    family.save(model, str(tmp_path))
    tokenizer((*SYMBOLS, "zz")).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="a CTC head of 6 classes, and 6 phonemes"):
        open_family("whisper_qwen3", str(tmp_path))


# ---- what is trained


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("llm", [PartConf(freeze=True), PartConf(use_lora=True)], ids=["frozen", "lora"])
def test_new_rows_train_alone(tmp_path, tied, llm):
    family = open_family("whisper_qwen3", str(make_composite(tmp_path, tied=tied)))
    before, model = family.load().state_dict(), family.load()
    task = open_task("sft", family)
    checkpoint.set_trainable(family, model, RunConfig(audio_encoder_conf=PartConf(freeze=True), llm_conf=llm))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.1)
    batch = batch_of(family, task)
    for _ in range(2):  # LoRA moves its layer from the second step on
        optimizer.zero_grad()
        task.loss(family, model, batch, task.counts(batch)).backward()
        optimizer.step()
    model.eval()  # without LoRA's dropout
    with torch.no_grad():
        trained = family.hidden(model, batch).text
        checkpoint.merge_lora(model)
        assert torch.allclose(family.hidden(model, batch).text, trained, atol=1e-4)
    after, ids = model.state_dict(), family.added_tokens
    assert set(after) == set(before)
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        moved = (after[name] != before[name]).any(1)
        assert moved[ids].any() and not moved[: min(ids)].any()
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("audio_tower"))
    assert any(not torch.equal(after[n], before[n]) for n in before if "q_proj" in n) == llm.use_lora
