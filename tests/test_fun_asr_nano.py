"""The Fun-ASR-Nano family, and the masked loss of task sft on it."""

import numpy as np
import pytest
import torch
from tiny import make_corpus, make_model

from speechllm import audio
from speechllm.batching import collate
from speechllm.config import AnswerOptions, RunConfig
from speechllm.errors import UserError
from speechllm.formats.jsonl import JsonlFile
from speechllm.models import open_family
from speechllm.models.fun_asr_nano import fbank, stack_frames
from speechllm.sample import Prompt
from speechllm.tasks import open_task

ANSWER = AnswerOptions(max_new_tokens=12)


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return open_family("fun_asr_nano", str(make_model(tmp_path_factory.mktemp("model"))))


@pytest.fixture(scope="module")
def model(family):
    return family.load()


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return JsonlFile(make_corpus(tmp_path_factory.mktemp("corpus"), 7))


def examples(family, samples, generating=False):
    task = open_task("sft", family)
    waves = [audio.read(sample.clip) for sample in samples]
    if generating:
        return [task.query(family, sample, wave) for sample, wave in zip(samples, waves, strict=True)]
    return [task.example(family, sample, wave, None) for sample, wave in zip(samples, waves, strict=True)]


def test_fbank_equals_an_independent_kaldi_filterbank():
    """Against transformers' numpy spectrogram with Kaldi's settings, which its AST and SeamlessM4T extractors use."""
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    wave = np.random.default_rng(1).standard_normal(16000).astype(np.float32) * 0.1
    filters = mel_filter_bank(
        num_frequency_bins=257,
        num_mel_filters=80,
        min_frequency=20,
        max_frequency=8000,
        sampling_rate=16000,
        norm=None,
        mel_scale="kaldi",
        triangularize_in_mel_space=True,
    )
    expected = spectrogram(
        wave * 2**15,
        window_function(400, "hamming", periodic=False),
        frame_length=400,
        hop_length=160,
        fft_length=512,
        power=2.0,
        center=False,
        preemphasis=0.97,
        mel_filters=filters,
        log_mel="log",
        mel_floor=1.192092955078125e-07,
        remove_dc_offset=True,
    ).T
    assert np.abs(fbank(wave, 16000) - expected).max() < 2e-3


def test_stacking_by_hand():
    """funasr's apply_lfr with m=7, n=6, written out: frame t sees 3 frames to the left, edges repeat."""
    mel = np.arange(14, dtype=np.float32)[:, None]
    assert stack_frames(mel).tolist() == [
        [0, 0, 0, 0, 1, 2, 3],
        [3, 4, 5, 6, 7, 8, 9],
        [9, 10, 11, 12, 13, 13, 13],
    ]
    assert stack_frames(mel[:1]).tolist() == [[0] * 7]


def test_the_prompt_is_laid_out_as_upstream_does_and_only_the_answer_bears_loss(family):
    row = family.encode(np.zeros(8000, np.float32), Prompt("S", "B：", "A"), "one two", None)
    ids, labels = row["input_ids"].tolist(), row["labels"].tolist()
    audio_ids = [i for i in ids if i == family.config.audio_token_id]
    assert len(audio_ids) == len(row["input_features"]) == 8  # ceil(48 frames / 6)
    said = family.tokenizer.decode(ids).replace("<|object_ref_start|>" * 8, "@")
    assert said == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nB：@A<|im_end|>\n<|im_start|>assistant\none two<|im_end|>"
    )
    assert family.tokenizer.decode([i for i in labels if i >= 0]) == "one two<|im_end|>"
    assert [i for i, label in zip(ids, labels, strict=True) if label >= 0] == [i for i in labels if i >= 0]
    query = family.encode(np.zeros(8000, np.float32), Prompt("S", "B：", "A"), None, None)
    assert family.tokenizer.decode(query["input_ids"]).endswith("assistant\n") and "labels" not in query


def test_masked_loss_equals_one_computed_by_hand(family, model, samples):
    """By hand: transformers' full logits, row by row, without padding; minus log-softmax at the answer's tokens."""
    task, rows = open_task("sft", family), examples(family, samples)
    total, count = 0.0, 0
    for row in rows:
        alone = {name: tensor[None] for name, tensor in row.items() if name != "labels"}
        with torch.no_grad():
            logits = model(**alone).logits[0].double().numpy()
        for position, label in enumerate(row["labels"].tolist()):
            if label >= 0:
                before = logits[position - 1]
                total += np.log(np.exp(before - before.max()).sum()) + before.max() - before[label]
                count += 1
    batch = collate(rows, family.fields(generating=False))
    assert task.counts(batch)["tokens"].item() == count == sum(len(family._ids(s.text)) + 1 for s in samples)
    loss = task.loss(family, model, batch, {"tokens": torch.tensor(count)})
    assert loss.item() == pytest.approx(total / count, abs=1e-5)


def test_a_filler_batch_has_no_loss_but_a_gradient_path(family, model, samples):
    task = open_task("sft", family)
    batch = collate(examples(family, samples)[:1], family.fields(generating=False))
    task.silence(batch)
    loss = task.loss(family, model, batch, {"tokens": torch.tensor(5)})
    assert loss.item() == 0 and loss.requires_grad and task.counts(batch)["tokens"].item() == 0


def test_logits_are_computed_at_label_positions_only(family, model, samples):
    task, seen = open_task("sft", family), []
    hook = model.lm_head.register_forward_hook(lambda module, given, made: seen.append(made.shape))
    batch = collate(examples(family, samples), family.fields(generating=False))
    task.loss(family, model, batch, task.counts(batch))
    hook.remove()
    assert seen == [(int(task.counts(batch)["tokens"]), len(family.tokenizer))]


def test_padding_changes_nothing(family, model, samples):
    rows = examples(family, samples)
    batch = collate(rows, family.fields(generating=False))
    with torch.no_grad():
        together = family.hidden(model, batch).text
        for i, row in enumerate(rows):
            alone = family.hidden(model, {name: tensor[None] for name, tensor in row.items()}).text[0]
            assert torch.allclose(together[i, : len(alone)], alone, atol=2e-5)


def test_generation_is_the_same_in_batches_and_one_by_one(family, model, samples):
    rows = examples(family, samples, generating=True)
    with torch.no_grad():
        together = family.generate(model, collate(rows, family.fields(generating=True)), ANSWER)
        alone = [family.generate(model, collate([row], family.fields(generating=True)), ANSWER)[0] for row in rows]
    assert together == alone
    assert all(row["truncated"] for row in together)  # a random model does not end


def test_save_and_open_again(family, model, tmp_path):
    (tmp_path / "source").mkdir()
    family.save(model, str(tmp_path / "copy"))
    again = open_family("fun_asr_nano", str(tmp_path / "copy")).load()
    theirs = again.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())


def test_weights_that_do_not_fit_are_refused(family, model, tmp_path):
    from safetensors.torch import load_file, save_file

    family.save(model, str(tmp_path))
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("model.multi_modal_projector.linear_1.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"do not fit.*multi_modal_projector.linear_1.weight"):
        open_family("fun_asr_nano", str(tmp_path)).load()


def test_unknown_names_and_another_model_are_refused(tmp_path):
    with pytest.raises(UserError, match="unknown family nano; there are: fun_asr_nano"):
        open_family("nano", str(tmp_path))
    with pytest.raises(UserError, match="not a Fun-ASR-Nano checkpoint"):
        open_family("fun_asr_nano", str(tmp_path))


def test_a_task_and_a_family_that_do_not_fit_are_refused_in_one_line():
    class Deaf:
        name = "deaf"

    with pytest.raises(UserError, match="task sft needs a family that generates; deaf does not"):
        open_task("sft", Deaf())
    assert RunConfig().task == "sft"


def test_audio_longer_than_the_encoder_takes_is_refused_in_one_line(family):
    with pytest.raises(UserError, match=r"150.0 s are 2500 frames of 60 ms, and the encoder takes 2048 \(123 s\); cut"):
        family.encode(np.zeros(150 * 16000, np.float32), Prompt(), "one", None)


def test_features_are_those_of_kaldi_native_fbank(samples):
    import kaldi_native_fbank as knf

    options = knf.FbankOptions()
    options.frame_opts.samp_freq, options.frame_opts.window_type, options.frame_opts.dither = 16000, "hamming", 0.0
    options.mel_opts.num_bins, options.energy_floor = 80, 0.0
    for sample in samples:
        wave, computer = audio.read(sample.clip), knf.OnlineFbank(options)
        computer.accept_waveform(16000, (wave * 32768.0).tolist())
        computer.input_finished()
        theirs = np.stack([computer.get_frame(i) for i in range(computer.num_frames_ready)])
        difference = np.abs(fbank(wave, 16000) - theirs)
        assert difference.mean() < 1e-5 and difference.max() < 0.01  # the largest where a bin holds next to nothing
    assert fbank(np.zeros(399, np.float32), 16000).shape == (0, 80)
