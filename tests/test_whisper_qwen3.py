"""The whisper_qwen3 family: the encoder against transformers' own, phoneme tokens, generation held to them, CTC."""

import itertools
import math

import numpy as np
import pytest
import torch
from composite import ANSWERS, PROMPT, RATE, SYMBOLS, batch_of, make_composite, make_whisper, queries, rows, wave

from speechllm.batching import collate
from speechllm.config import AnswerOptions, RunConfig
from speechllm.errors import UserError
from speechllm.models import ctc, open_family
from speechllm.models.whisper_qwen3.model import Encoder, Projector
from speechllm.sample import Prompt
from speechllm.tasks import open_task
from speechllm.tasks.sft import ctc_loss


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_composite(tmp_path_factory.mktemp("composite"), ctc=True, encoder_projector_ds_rate=2)


@pytest.fixture(scope="module")
def family(folder):
    return open_family("whisper_qwen3", str(folder))


@pytest.fixture(scope="module")
def model(family):
    return family.load()


# ---- encoder


@pytest.fixture(scope="module", params=[80, 128])
def whisper(request, tmp_path_factory):
    """transformers' own encoder, and ours with its weights."""
    from transformers import WhisperModel

    theirs = WhisperModel.from_pretrained(
        make_whisper(tmp_path_factory.mktemp("whisper"), request.param)
    ).encoder.eval()
    ours = Encoder(theirs.config).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.parametrize("lengths", [(200,), (201,), (7, 333, 150), (1, 2)])
def test_the_real_length_gives_what_thirty_seconds_give_under_a_mask(whisper, lengths):
    # Independent: Qwen2-Audio's copy of the encoder, which transformers runs on 3,000 frames and which takes a mask.
    from transformers import Qwen2AudioEncoderConfig
    from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder

    theirs, ours = whisper
    names = ("d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "num_mel_bins")
    names += ("max_source_positions",)
    copy = Qwen2AudioEncoder(Qwen2AudioEncoderConfig(**{name: getattr(theirs.config, name) for name in names})).eval()
    copy.load_state_dict(theirs.state_dict())
    seen = []
    copy.layers[-1].register_forward_hook(lambda layer, inputs, output: seen.append(output))
    mask = (torch.arange(3000) < torch.tensor(lengths)[:, None]).long()
    mel = torch.randn(len(lengths), 3000, theirs.config.num_mel_bins) * mask[..., None]
    with torch.no_grad():
        keep = mask[:, ::2].bool()
        copy(mel.transpose(1, 2), attention_mask=torch.zeros(keep.shape).masked_fill(~keep, -math.inf)[:, None, None])
        longest = max(lengths)
        short = ours(mel[:, :longest], mask[:, :longest])
    for row, length in enumerate(lengths):
        count = (length + 1) // 2
        wanted = theirs.layer_norm((seen[0][0] if isinstance(seen[0], tuple) else seen[0])[row, :count])
        assert torch.allclose(short[row, :count], wanted, atol=1e-5)


def test_padded_audio_gives_whispers_own_output(whisper):
    theirs, ours = whisper
    mel = torch.randn(2, 3000, theirs.config.num_mel_bins)
    with torch.no_grad():
        assert torch.equal(ours.padded(mel), theirs(mel.transpose(1, 2)).last_hidden_state)


def test_the_option_to_pad_is_whisper_on_thirty_seconds(tmp_path, whisper):
    theirs, _ = whisper
    mel = theirs.config.num_mel_bins
    family = open_family("whisper_qwen3", str(make_composite(tmp_path, mel=mel, pad_audio=True)))
    model, sound = family.load(), wave(1.03)
    row = family.encode(sound, PROMPT, None, None)
    with torch.no_grad():
        vectors, lengths = family.listen(model, collate([row], family.fields(True)))
        made = family.extractor(sound, sampling_rate=RATE, return_tensors="pt")["input_features"]
        heard = model.projector(theirs(made).last_hidden_state[:, :52])  # 103 frames of 10 ms
    assert lengths.tolist() == [52] and torch.allclose(vectors, heard, atol=1e-6)


def test_the_projector_by_hand():
    frames = torch.randn(2, 5, 3)
    plain = Projector(3, 1, 4)
    assert torch.equal(plain(frames), plain.linear(frames))
    stacking = Projector(3, 2, 4)
    found = stacking(frames)
    assert found.shape == (2, 3, 4)
    assert torch.allclose(found[1, 1], stacking.linear(torch.cat([frames[1, 2], frames[1, 3]])))
    assert torch.allclose(found[1, 2], stacking.linear(torch.cat([frames[1, 4], torch.zeros(3)])))


# ---- rows and batches


def test_the_loss_covers_the_phonemes_and_the_end_alone(family):
    for row, answer in zip(rows(family, open_task("sft", family)), ANSWERS, strict=True):
        bear = row["labels"][row["labels"] != -100]
        assert family.phonemes.decode(bear[:-1].tolist()) == answer and bear[-1] == family.end
        assert len(bear) == len(answer.split()) + 1


def test_the_audio_opens_the_users_turn(family):
    ids = next(rows(family, open_task("sft", family)))["input_ids"].tolist()
    first = ids.index(family.audio_token_id)
    assert family.tokenizer.decode(ids[:first]).endswith("<|im_start|>user\n")
    after = family.tokenizer.decode(ids[first:]).replace("<|object_ref_start|>", "")
    assert after.startswith("请你做语音评测<|im_end|>\n<|im_start|>assistant\n")


def test_as_many_audio_positions_as_vectors(family, model):
    batch = batch_of(family, open_task("sft", family))
    _, lengths = family.listen(model, batch)
    assert (batch["input_ids"] == family.audio_token_id).sum(1).tolist() == lengths.tolist()


def test_padding_changes_nothing(family, model):
    task = open_task("sft", family)
    together = batch_of(family, task)
    with torch.no_grad():
        found = family.hidden(model, together)
        for i, row in enumerate(rows(family, task)):
            alone = family.hidden(model, {name: tensor[None] for name, tensor in row.items()})
            assert torch.allclose(found.text[i, : alone.text.shape[1]], alone.text[0], atol=2e-5)
            assert torch.allclose(found.audio[i, : alone.lengths[0]], alone.audio[0], atol=2e-5)


def test_too_long_audio_is_refused_with_its_limit(tmp_path):
    family = open_family("whisper_qwen3", str(make_composite(tmp_path, max_audio_seconds=2.0)))
    family.encode(wave(2.0), PROMPT, "sil", None)
    with pytest.raises(UserError, match=r"2.5 s, and the model takes 2 s; cut the audio"):
        family.encode(wave(2.5), PROMPT, "sil", None)


def test_a_moment_of_audio_is_heard(family, model):
    row = family.encode(wave(0.005), PROMPT, None, None)
    assert family.listen(model, collate([row], family.fields(True)))[1].tolist() == [1]


def test_a_symbol_that_the_model_lacks_is_named(family):
    with pytest.raises(UserError, match="zh: not among the model's 5 phonemes"):
        family.encode(wave(1), PROMPT, "sil zh", None)


def test_marked_answers_hold_phonemes_and_text(tmp_path):
    family = open_family("whisper_qwen3", str(make_composite(tmp_path, marks=True, ctc=True)))
    answer = "<PH_START> sil sh <PH_END> score one"
    row = family.encode(wave(1), PROMPT, answer, None)
    bear = row["labels"][row["labels"] != -100][:-1].tolist()
    assert family.phonemes.decode(bear) == answer
    assert row["ctc_labels"].tolist() == [1, 2]
    text = family.encode(wave(1), PROMPT, "sil one", None)
    assert len(text["ctc_labels"]) == 0 and family.phonemes.ids["sil"] not in text["labels"]


# ---- generation


def generate(family, model, some, **options):
    batch = collate(some, family.fields(generating=True))
    with torch.no_grad():
        return family.generate(model, batch, AnswerOptions(max_new_tokens=9, **options))


def test_generation_is_the_same_in_batches_and_one_by_one(family, model):
    together = generate(family, model, queries(family))
    alone = [generate(family, model, [row])[0] for row in queries(family)]
    assert [row["text"] for row in together] == [row["text"] for row in alone]
    assert np.allclose([r["confidences"][0] for r in together], [r["confidences"][0] for r in alone], atol=2e-4)


def test_nothing_but_phonemes_is_said_unless_asked(family, model):
    held, free = (generate(family, model, queries(family), vocabulary=name) for name in ("auto", "all"))
    assert all(set(row["text"].split()) <= set(SYMBOLS) for row in held)
    assert any(set(row["text"].split()) - set(SYMBOLS) for row in free)  # a random model


def test_a_confidence_is_the_posterior_among_the_phonemes(family, model):
    row = queries(family)[1]
    found = generate(family, model, [row])[0]
    said = [family.phonemes.ids[symbol] for symbol in found["text"].split()]
    ids = torch.cat([row["input_ids"], torch.tensor(said)])
    again = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch = {name: tensor[None] for name, tensor in (row | again).items()}
    with torch.no_grad():
        logits = family.head(model)(family.hidden(model, batch).text[0])
    allowed = [*family.phonemes.ids.values(), family.end]
    start = len(row["input_ids"]) - 1
    wanted = [logits[start + n, allowed].softmax(-1)[allowed.index(i)].item() for n, i in enumerate(said)]
    assert len(said) == len(found["confidences"]) > 0
    assert np.allclose(found["confidences"], wanted, atol=2e-4)


def test_n_best_answers_come_best_first(family, model):
    one, several = generate(family, model, queries(family)), generate(family, model, queries(family), nbest=3)
    for greedy, row in zip(one, several, strict=True):
        scores = [answer["score"] for answer in row["nbest"]]
        assert len({answer["text"] for answer in row["nbest"]}) == 3 and scores == sorted(scores, reverse=True)
        assert row["text"] == row["nbest"][0]["text"]
        mean = np.log(greedy["confidences"]).sum() / (len(greedy["confidences"]) + (not greedy["truncated"]))
        assert scores[0] >= mean - 0.01
        for answer in row["nbest"]:  # the score is the mean log posterior of its tokens
            if answer["truncated"]:
                assert math.isclose(np.log(answer["confidences"]).mean(), answer["score"], abs_tol=0.02)


def test_phonemes_cannot_be_asked_of_a_model_without(tmp_path):
    family = open_family("whisper_qwen3", str(make_composite(tmp_path, symbols=())))
    with pytest.raises(UserError, match="its tokenizer has none"):
        generate(family, family.load(), queries(family), vocabulary="phonemes")


# ---- CTC


def test_ctc_loss_against_all_paths_by_hand():
    logits = torch.randn(2, 4, 3)
    labels, lengths = torch.tensor([[1, 2], [2, -100]]), torch.tensor([4, 3])
    wanted = 0.0
    for row in range(2):
        scores, target = logits[row].log_softmax(-1), [i for i in labels[row].tolist() if i != -100]
        total = 0.0
        for path in itertools.product(range(3), repeat=int(lengths[row])):
            if [best for best, _ in itertools.groupby(path) if best] == target:
                total += math.exp(sum(scores[t, i].item() for t, i in enumerate(path)))
        wanted -= math.log(total)
    assert math.isclose(ctc_loss(logits, lengths, labels).item(), wanted, rel_tol=1e-5)
    empty = torch.full((2, 1), -100)
    assert ctc_loss(logits, lengths, empty).item() == 0.0


def test_ctc_stands_beside_the_loss_with_its_weight(family, model):
    losses = []
    for weight in (0.0, 0.5):
        task = open_task("sft", family, RunConfig(ctc_head_weight=weight))
        batch = batch_of(family, task)
        with torch.no_grad():
            losses.append(task.loss(family, model, batch, task.counts(batch)).item())
            found = family.hidden(model, batch)
            term = ctc_loss(model.ctc_head(found.audio), found.lengths, batch["ctc_labels"]) / 9  # phonemes
    assert math.isclose(losses[1] - losses[0], 0.5 * term.item(), rel_tol=1e-4)


def test_a_loss_in_parts_is_the_loss_of_the_whole(family, model):
    task = open_task("sft", family)
    whole, some = batch_of(family, task), list(rows(family, task))
    parts = [collate(part, family.fields(generating=False)) for part in (some[:1], some[1:])]
    silent = collate(some[:1], family.fields(generating=False))
    task.silence(silent)
    totals = task.counts(whole)
    with torch.no_grad():
        wanted = task.loss(family, model, whole, totals).item()
        found = sum(task.loss(family, model, part, totals).item() for part in (*parts, silent))
    assert math.isclose(found, wanted, rel_tol=1e-5)


def test_more_phonemes_than_ctc_can_place_are_refused(family):
    with pytest.raises(UserError, match=r"20 phonemes in 5 vectors of audio, CTC needs 39"):
        family.encode(wave(0.2), PROMPT, " ".join(["sil"] * 20), None)


def test_the_best_path_by_hand():
    path = torch.tensor([[0, 1, 1, 0, 1, 2, 2, 3]])
    logits = torch.nn.functional.one_hot(path, 4).float()
    assert ctc.texts(logits, torch.tensor([7]), ["a", "b", "c"]) == ["a a b"]


def test_a_prompt_before_the_audio_is_kept_in_its_place(family):
    row = family.encode(wave(1), Prompt(before="one "), None, None)
    ids = row["input_ids"].tolist()
    assert family.tokenizer.decode(ids[: ids.index(family.audio_token_id)]).endswith("user\none ")
