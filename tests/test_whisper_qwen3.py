"""The whisper_qwen3 family: the encoder against transformers' own, phoneme tokens, generation held to them, CTC."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from composite import PROMPT, SYMBOLS, make_composite, make_qwen, make_whisper, tokenizer

from speechllm import checkpoint
from speechllm.batching import collate
from speechllm.config import AnswerOptions, PartConf, RunConfig
from speechllm.errors import UserError
from speechllm.models import ctc, open_family
from speechllm.models.whisper_qwen3.compose import make
from speechllm.models.whisper_qwen3.model import Encoder, Projector
from speechllm.sample import Clip, Prompt, Sample
from speechllm.tasks import open_task
from speechllm.tasks.sft import ctc_loss

RATE = 16000
ANSWERS = ("sil sh iy", "a5 sh sil ɪ ɪ", "iy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_composite(tmp_path_factory.mktemp("composite"), ctc=True, encoder_projector_ds_rate=2)


@pytest.fixture(scope="module")
def family(folder):
    return open_family("whisper_qwen3", str(folder))


@pytest.fixture(scope="module")
def model(family):
    return family.load()


def wave(seconds, seed=0):
    draw = np.random.default_rng(seed)
    samples = int(seconds * RATE)
    tone = np.sin(2 * np.pi * draw.uniform(200, 2000) * np.arange(samples) / RATE)
    return (0.2 * tone + 0.02 * draw.standard_normal(samples)).astype(np.float32)


def rows(family, task, answers=ANSWERS, prompt=PROMPT):
    for i, answer in enumerate(answers):
        sample = Sample(f"u{i}", Clip("x"), prompt, answer, 0, 0, "x:1")
        yield task.example(family, sample, wave(0.61 + 0.37 * i, i), None)


def batch_of(family, task, **kwargs):
    return collate(list(rows(family, task, **kwargs)), family.fields(generating=False))


def queries(family):
    samples = [Sample(f"u{i}", Clip("x"), PROMPT, None, 0, 0, "x:1") for i in range(3)]
    return [open_task("sft", family).query(family, one, wave(0.5 + 0.3 * i, i)) for i, one in enumerate(samples)]


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


def test_a_prompt_before_the_audio_is_kept_in_its_place(family):
    row = family.encode(wave(1), Prompt(before="one "), None, None)
    ids = row["input_ids"].tolist()
    assert family.tokenizer.decode(ids[: ids.index(family.audio_token_id)]).endswith("user\none ")
