"""The check before training: it passes what is right, and each check fails on a fault that was put in.

Faults are families and tasks that do one thing wrong, as upstream's or a newcomer's would, and checkpoints and rows
that are broken on disk.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from composite import make_composite
from safetensors.torch import load_file, save_file
from tiny import WORDS, make_corpus, make_model

from speechllm import cli, doctor
from speechllm.batching import Pad
from speechllm.config import RunConfig
from speechllm.doctor.patient import Patient
from speechllm.models import FAMILIES
from speechllm.models.base import Family
from speechllm.models.fun_asr_nano import FunAsrNano
from speechllm.models.whisper_qwen3 import WhisperQwen3
from speechllm.tasks import TASKS
from speechllm.tasks.sft import Sft

ROOT = Path(__file__).resolve().parents[1]
LORA = ["++llm_conf.use_lora=true", "++audio_encoder_conf.freeze=true", "++train_conf.gradient_checkpointing=true"]
HEAVY = ("up_proj.weight", "gate_proj.weight")  # of the LLM; the activations are the product of the two


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("doctor")
    make_model(folder / "model", spread=0.3)
    make_model(folder / "native", spread=0.3, format="funasr")
    make_corpus(folder / "train", 12)
    return folder


def config(home, *words, model="model"):
    data = f"++train_data_set_list={home}/train/rows.jsonl"
    return cli.parse(RunConfig, [f"++model={home / model}", data, *words])


def failed(report):
    return {found.check for found in report.failed}


def told(report, check):
    (found,) = [found for found in report.findings if found.check == check]
    return found


@pytest.fixture
def broken(home, monkeypatch):
    """``broken(FamilyOrTask, "++key=value", ...)``: the report on a run with that class in place of the right one."""

    def run(made, *words):
        kind = "task" if issubclass(made, Sft) else "family"
        monkeypatch.setitem(TASKS if kind == "task" else FAMILIES, "broken", made)
        return doctor.examine(replace(config(home, *words), **{kind: "broken"}))

    return run


def remade(home, name, change, kind=torch.float32):
    """A copy of the checkpoint with its tensors changed and stored in another type."""
    folder = home / name
    if not folder.exists():
        make_model(folder, spread=0.3)
        state = load_file(folder / "model.safetensors")
        for key, tensor in state.items():
            change(key, tensor)
        save_file({key: t.to(kind) for key, t in state.items()}, folder / "model.safetensors", {"format": "pt"})
    return name


# ---- what is right


@pytest.mark.parametrize("model", ["model", "native"])
@pytest.mark.parametrize("words", [[], LORA, ["++train_conf.dtype=bfloat16"]], ids=["full", "lora", "bfloat16"])
def test_a_sound_run_passes_every_check(home, model, words):
    report = doctor.examine(config(home, *words, model=model))
    assert not report.failed, str(report)
    assert told(report, "audio_encoder").told.startswith("frozen" if words is LORA else "trained:")
    assert told(report, "llm").told.startswith("trained by LoRA" if words is LORA else "trained:")


def test_the_command_shows_what_is_learnt_and_leaves_nothing_behind(home, tool, tmp_path):
    words = [f"++model={home}/model", f"++train_data_set_list={home}/train/rows.jsonl", "++trust_remote_code=true"]
    done = tool("doctor", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    first = (home / "train" / "text").read_text().splitlines()[0].split(" ", 1)[1]
    assert f"    learns    {first}<|im_end|>\n" in done.stdout
    assert "语音转写：<|object_ref_start|> x " in done.stdout
    assert done.stdout.rstrip().endswith("checks passed") and not list(tmp_path.iterdir())


def test_augmented_rows_pass(home):
    report = doctor.examine(
        config(home, "++dataset_conf.speed_perturb=[0.8,1.2]", "++dataset_conf.spec_aug.time_masks=2")
    )
    assert not report.failed, str(report)


# ---- 1 and 2: what bears loss


class AllLabels(FunAsrNano):
    """Labels as transformers' ``output_labels`` gives them: the prompt is in."""

    def encode(self, *given):
        row = super().encode(*given)
        return row | {"labels": row["input_ids"].clone()}


class ShiftedLabels(FunAsrNano):
    """Labels moved by one, which the loss will do again."""

    def encode(self, *given):
        row = super().encode(*given)
        return row | {"labels": row["labels"].roll(-1)}


class NoEnd(FunAsrNano):
    """The end mark is not learnt, so answers never end."""

    def encode(self, *given):
        row = super().encode(*given)
        return row | {"labels": row["labels"].where(row["labels"] != self.end, -100)}


class LossOnAll(Sft):
    """The labels are right, and the loss does not look at them."""

    def loss(self, family, model, batch, totals):
        return super().loss(family, model, batch | {"labels": batch["input_ids"]}, totals)


@pytest.mark.parametrize("made,said", [
    (AllLabels, "utt000: 'system"),  # the very first token has nothing before it, and so no loss
    (LossOnAll, "utt000: 'system"),
    (ShiftedLabels, "not at the positions of their tokens"),
    (NoEnd, "<|im_end|>'"),
])  # fmt: skip
def test_a_loss_on_anything_but_the_answer_fails(broken, made, said):
    report = broken(made)
    assert "loss" in failed(report) and said in told(report, "loss").told


class NoLabels(FunAsrNano):
    def encode(self, wave, prompt, answer, augment):
        row = super().encode(wave, prompt, answer, augment)
        if len(answer.split()) == 1:
            row["labels"].fill_(-100)
        return row


class NoLabelsAtAll(FunAsrNano):
    def encode(self, *given):
        row = super().encode(*given)
        return row | {"labels": torch.full_like(row["labels"], -100)}


def test_rows_without_loss_fail_and_are_named(broken, home):
    texts = [line.split(" ", 1) for line in (home / "train" / "text").read_text().splitlines()]
    looked_at = {row.key for row in Patient(config(home)).rows}
    short = [key for key, text in texts if " " not in text and key in looked_at]
    report = broken(NoLabels)
    assert failed(report) == {"labels"} and told(report, "labels").told.split(";")[0].split(", ") == short
    assert failed(broken(NoLabelsAtAll)) == {"labels", "denominators"}


# ---- 3 and 4: audio


class OneTooMany(FunAsrNano):
    def encode(self, *given):
        row = super().encode(*given)
        place = row["input_ids"].tolist().index(self.audio_token_id)
        for name in ("input_ids", "attention_mask", "labels"):
            row[name] = torch.cat([row[name][:place], row[name][place : place + 1], row[name][place:]])
        return row


class Deaf(FunAsrNano):
    def listen(self, model, batch):
        vectors, lengths = super().listen(model, batch)
        return vectors * 0, lengths


def test_audio_tokens_that_do_not_match_the_vectors_fail(broken):
    report = broken(OneTooMany)
    assert failed(report) == {"audio positions"} and "15 positions take audio" in str(report)


def test_audio_that_changes_nothing_fails(broken):
    assert failed(broken(Deaf)) == {"audio is heard", "audio_encoder", "audio_adaptor"}  # it gets no gradient either


# ---- 5: what is trained


class Detached(FunAsrNano):
    def listen(self, model, batch):
        vectors, lengths = super().listen(model, batch)
        return vectors.detach(), lengths


class Overlapping(FunAsrNano):
    """The LLM's part brings the encoder along, so that its freezing is undone."""

    def parts(self, model):
        parts = super().parts(model)
        return parts | {"llm": parts["llm"] + parts["audio_encoder"]}


class Homeless(FunAsrNano):
    def parts(self, model):
        parts = super().parts(model)
        return {"audio_encoder": parts["audio_encoder"], "llm": parts["llm"]}


class Idle(FunAsrNano):
    def load(self):
        model = super().load()
        model.model.audio_tower.spare = torch.nn.Parameter(torch.ones(3))
        return model


class Normed(FunAsrNano):
    """A part without any linear layer, so that LoRA finds none."""

    def parts(self, model):
        parts = super().parts(model)
        norm = model.model.language_model.norm
        rest = (model.model.language_model.layers, model.model.language_model.embed_tokens, model.lm_head)
        return {"audio_encoder": parts["audio_encoder"] + parts["audio_adaptor"], "llm": rest, "audio_adaptor": (norm,)}


@pytest.mark.parametrize("made,words,faults", [
    (Detached, [], {"audio_encoder", "audio_adaptor"}),
    (Detached, ["++audio_encoder_conf.freeze=true"], {"audio_adaptor"}),
    (Overlapping, ["++audio_encoder_conf.freeze=true"], {"audio_encoder"}),
    (Homeless, [], {"parts"}),
    (Normed, ["++audio_adaptor_conf.use_lora=true"], {"audio_adaptor"}),
])  # fmt: skip
def test_parts_that_are_not_trained_as_the_config_says_fail(broken, made, words, faults):
    assert failed(broken(made, *words)) == faults


def test_a_tensor_that_the_loss_does_not_use_is_told(broken):
    report = broken(Idle)
    assert not report.failed and "audio_tower.spare" in told(report, "without gradient").told


def test_no_gradient_is_kept(home):
    patient = Patient(config(home))
    done = patient.learn()
    assert done.moved and all(p.grad is None for p in patient.model.parameters())


# ---- 6: phonemes


class InPieces(WhisperQwen3):
    """Writes the symbols of an answer as ordinary text."""

    def encode(self, wave, prompt, answer, augment):
        row = super().encode(wave, prompt, None, augment)
        ids = torch.tensor([*self.tokenizer.encode(answer, add_special_tokens=False), self.end])
        row["labels"] = torch.cat([torch.full_like(row["input_ids"], -100), ids])
        row["input_ids"] = torch.cat([row["input_ids"], ids])
        return row | {"attention_mask": torch.ones_like(row["input_ids"])}


@pytest.fixture(scope="module")
def composite(home):
    """Options of a run on whisper_qwen3, with these phonemes; the words of the corpus serve as symbols."""

    def options(symbols=WORDS, **how):
        name = f"{len(symbols)}-{'-'.join(how)}"
        folder = home / name / "model"
        made = folder if folder.exists() else make_composite(home / name, symbols, **how)
        return ["++family=whisper_qwen3", f"++model={made}", "++normalizer=phonemes"]

    return options


@pytest.mark.parametrize("how", [{}, {"ctc": True}, {"marks": True}, {"pad_audio": True}], ids=str)
def test_phonemes_that_are_whole_pass(home, composite, how):
    report = doctor.examine(config(home, *composite(**how)))
    assert not report.failed, str(report)
    assert {"phonemes", "whole phonemes"} <= {found.check for found in report.findings}


@pytest.mark.parametrize("words", [["++llm_conf.freeze=true"], LORA], ids=["frozen", "lora"])
def test_rows_of_added_tokens_are_trained_beside_a_frozen_llm(home, composite, words):
    report = doctor.examine(config(home, *composite(), *words))
    assert not report.failed, str(report)
    assert told(report, "llm").told.endswith("the added tokens have rows of their own")


def test_phonemes_in_pieces_fail(broken, composite):
    report = broken(InPieces, *composite())
    assert failed(report) == {"whole phonemes"} and "'four four two two' became" in told(report, "whole phonemes").told


def test_a_symbol_that_the_vocabulary_lacks_is_named(home, composite):
    report = doctor.examine(config(home, *composite(WORDS[:-1])))
    assert told(report, "phonemes").told.startswith("six (first in utterance utt")
    assert failed(report) == {"rows", "phonemes"}  # a row with that symbol cannot be learnt from


def test_a_score_by_phonemes_needs_a_tokenizer_that_has_them(home):
    report = doctor.examine(config(home, "++normalizer=timit39"))
    assert failed(report) == {"phonemes"} and "tools/build_phoneme_vocab.py" in told(report, "phonemes").told


# ---- 7: what is not finite


def spoil(key, tensor):
    if key.endswith("k_proj.weight"):
        tensor[0, 0] = torch.inf


def large(key, tensor):
    if key.endswith(HEAVY):
        tensor *= 600  # 600 * 0.3 * sqrt(32), squared, is over 65,504
    elif key.endswith("down_proj.weight"):
        tensor *= 1e-4  # the product itself is too large, and nothing that comes of it


def huge(key, tensor):
    if key.endswith(HEAVY):
        tensor *= 1e20


def test_weights_that_overflowed_fail(home, tool):
    name = remade(home, "spoilt", spoil, torch.float16)
    done = tool("doctor", f"++model={home / name}", f"++train_data_set_list={home}/train/rows.jsonl")
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if "FAIL" in line]
    assert "k_proj.weight" in line and "stored in float16: audio_encoder, audio_adaptor, llm" in line
    assert done.stdout.splitlines()[-1].startswith("1 of ")


def test_float16_that_overflows_fails_where_the_checkpoint_is_stored_in_it(home):
    report = doctor.examine(config(home, model=remade(home, "half", large, torch.float16)))
    assert failed(report) == {"float16"}
    assert (
        "would overflow in model.language_model.layers.0.mlp.down_proj, and audio_enc" in told(report, "float16").told
    )


def test_float16_that_overflows_is_noted_otherwise(home):
    report = doctor.examine(config(home, model=remade(home, "large", large)))
    assert not report.failed and told(report, "float16").verdict == "note"


def test_a_loss_that_is_not_finite_fails_and_names_the_first_module(home):
    report = doctor.examine(config(home, model=remade(home, "huge", huge)))
    assert failed(report) == {"finite loss", "float32"}
    assert told(report, "float32").told.startswith("model.language_model.layers.0.mlp.down_proj;")


# ---- the rest


class MaskPadded(FunAsrNano):
    """The encoder takes padding for speech."""

    def fields(self, generating):
        return super().fields(generating) | {"input_features_mask": Pad(1)}


class RightPadded(FunAsrNano):
    def fields(self, generating):
        return super().fields(False)


@pytest.mark.parametrize("made", [MaskPadded, RightPadded])
def test_padding_that_matters_fails(broken, made):
    assert failed(broken(made)) == {"padding"}


def test_rows_that_cannot_be_used_are_named_and_the_others_judged(home, tmp_path):
    rows = (home / "train" / "rows.jsonl").read_text().replace("utt000.wav", "gone.wav")
    (tmp_path / "rows.jsonl").write_text(rows)
    report = doctor.examine(config(home, f"++train_data_set_list={tmp_path}/rows.jsonl"))
    assert failed(report) == {"rows"} and told(report, "llm").verdict == "ok"
    assert f"utterance utt000 ({tmp_path}/rows.jsonl:1): " in told(report, "rows").told
    (tmp_path / "rows.jsonl").write_text(rows.splitlines()[0] + "\n")
    report = doctor.examine(config(home, f"++train_data_set_list={tmp_path}/rows.jsonl"))
    assert [found.check for found in report.findings] == ["rows", "all others"]


class OfABatch(Sft):
    """Stands for a task that does not train text, and whose rows have no loss of their own."""

    needs = Family

    def counts(self, batch):
        return {"rows": torch.tensor(len(batch["labels"]))}

    def loss(self, family, model, batch, totals):
        found = family.hidden(model, batch).text.sum((1, 2))
        return (found - found.mean()).square().sum() / totals["rows"]


def test_a_task_without_text_is_judged_by_its_batch(broken, monkeypatch):
    report = broken(OfABatch)
    assert not report.failed and "labels" not in {found.check for found in report.findings}
    monkeypatch.setitem(FAMILIES, "fun_asr_nano", Deaf)
    assert "audio is heard" in failed(broken(OfABatch))


def test_what_keeps_a_run_from_starting_is_one_line(tool, home):
    done = tool("doctor", f"++model={home}/model", "++llm_conf.freez=true")
    assert done.returncode == 2 and "llm_conf.freeze" in done.stderr
    done = tool("doctor", f"++model={home}/model")
    assert done.returncode == 1 and done.stderr.startswith("error: train_data_set_list is not set")
