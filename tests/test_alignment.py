"""The task alignment, with a family that only hands it logits: loss and times against arithmetic by hand."""

import math

import numpy as np
import pytest
import torch

from speechllm.augment import Augmenter
from speechllm.config import AlignmentConf, DatasetConf, DecodeOptions, RunConfig
from speechllm.errors import UserError
from speechllm.models.base import Aligns
from speechllm.sample import Clip, Prompt, Sample, Span
from speechllm.tasks import open_task
from speechllm.tasks.alignment import expected, spread

STEP = 0.08
K = 50


class Told(Aligns):
    """Its logits are the batch's; what it is asked to encode, it gives back."""

    name, classes, step = "told", K, STEP

    def split(self, text, language):
        return text.split()

    def encode(self, wave, words, spans=None, marked=None, augment=None):
        return {"words": words, "spans": spans, "marked": marked}

    def slots(self, batch):
        return [2 * len(words) for words in batch["said"]]

    def words(self, batch):
        return batch["said"]

    def seconds(self, batch):
        return batch["seconds"]

    def slot_logits(self, model, batch):
        return batch["logits"]


def task(**conf):
    return open_task("alignment", Told(), RunConfig(alignment_conf=AlignmentConf(**conf)))


def sample(spans=((0.1, 0.3), (0.3, 0.9)), text="turn on", key="u1"):
    made = None if spans is None else tuple(Span(*span) for span in spans)
    return Sample(key, Clip("x.wav"), Prompt(), text, 100, 7, "x.jsonl:1", made)


def augment(epoch=0, key="u1", **conf):
    return Augmenter(DatasetConf(**conf), 0, 16000).draw(epoch, key)


def peaked(places, sharpness=4.0):
    """(S, K) log posteriors whose expectation is each place: a normal distribution around it."""
    away = torch.arange(K) - torch.tensor(places)[:, None]
    return -sharpness * away.square()


def predict(places, seconds=4.0, sharpness=4.0, **options):
    batch = {"said": [["w"] * (len(places) // 2)], "seconds": [seconds], "logits": peaked(places, sharpness)}
    (row,) = task().predict(Told(), None, batch, DecodeOptions(**options))
    return row


def test_loss_is_cross_entropy_at_the_slots_over_the_steps_count():
    draw = torch.Generator().manual_seed(0)
    logits, places = torch.randn(4, K, generator=draw), torch.tensor([1.2, 3.6, -1.0, 48.9])
    batch = {"logits": logits, "places": places}
    counts = task().counts(batch)
    assert counts["slots"] == 3
    found = task().loss(Told(), None, batch, {"slots": torch.tensor(12)})  # over all ranks and parts
    logs = logits.double().log_softmax(-1)
    assert float(found) == pytest.approx(-float(logs[0, 1] + logs[1, 4] + logs[3, 49]) / 12, rel=1e-6)
    task().silence(batch)
    assert task().counts(batch)["slots"] == 0
    assert task().loss(Told(), None, batch, {"slots": torch.tensor(12)}) == 0


def test_spread_targets_are_a_normal_distribution_around_the_place():
    (target,) = spread(torch.tensor([3.25]), K, 0.5).double()
    weights = [math.exp(-0.5 * ((k - 3.25) / 0.5) ** 2) for k in range(K)]
    assert target.tolist() == pytest.approx([weight / sum(weights) for weight in weights], abs=1e-7)
    assert spread(torch.tensor([3.4, 3.6, 60.0]), K, 0).argmax(-1).tolist() == [3, 4, K - 1]


def test_expectation_is_over_two_classes_to_both_sides():
    posteriors = torch.zeros(2, K)
    posteriors[0, [4, 5, 6, 20]] = torch.tensor([0.2, 0.4, 0.2, 0.2])  # what is far away has no say
    posteriors[1, [0, 1]] = torch.tensor([0.75, 0.25])
    found = expected(posteriors, posteriors.argmax(-1))
    assert found.tolist() == pytest.approx([5.0, 0.25])


def test_times_below_the_bin_and_by_argmax():
    places = [1.25, 3.5001, 3.75, 11.125]
    exact = predict(places, sharpness=1.0)
    coarse = predict(places, sharpness=1.0, boundaries="argmax", zero_length=True)
    assert np.ravel(exact["timestamps"]) == pytest.approx([STEP * place for place in places], abs=2e-3)
    assert np.ravel(coarse["timestamps"]) == pytest.approx([0.08, 0.32, 0.32, 0.88])
    assert coarse["classes"] == exact["classes"] == [1, 4, 4, 11]
    assert exact["words"] == ["w", "w"] and exact["text"] == "w w" and exact["inversions"] == 0
    assert all(0.8 < value <= 1 for value in exact["confidences"])


def test_an_outlier_is_repaired_and_its_word_is_doubted():
    found = predict([1.0, 3.0, 30.0, 5.0, 5.0, 8.0])
    assert found["inversions"] == 1
    assert np.ravel(found["timestamps"])[2] == pytest.approx(3 * STEP, abs=2e-3)  # as its nearer neighbour
    assert found["confidences"][1] < 0.01 < 0.9 < min(found["confidences"][0], found["confidences"][2])


def test_no_word_lasts_nothing_unless_asked():
    places = [2.0, 2.0, 2.0, 2.0, 6.0, 6.0]
    kept = np.array(predict(places)["timestamps"])
    assert (kept[:, 1] - kept[:, 0]).min() >= 0.02 - 1e-6 and (np.diff(kept.ravel()) >= -1e-9).all()
    asked = np.array(predict(places, zero_length=True, boundaries="argmax")["timestamps"])
    assert (asked[:, 1] == asked[:, 0]).all()


def test_times_stay_within_the_audio():
    found = np.ravel(predict([0.0, 5.0, 12.0, 13.0], seconds=0.9)["timestamps"])
    assert found.min() >= 0 and found.max() <= 0.9


def test_slots_are_drawn_by_seed_epoch_and_utterance():
    def marked(epoch, key="u1", prob=0.5):
        text = " ".join(["w"] * 40)
        spans = [(0.1 * i, 0.1 * i + 0.1) for i in range(40)]
        return task(slot_prob=prob).example(Told(), sample(spans, text, key), np.zeros(99), augment(epoch, key))[
            "marked"
        ]

    assert marked(0) == marked(0) and marked(0) != marked(1) and marked(0) != marked(0, "u2")
    assert 8 < sum(marked(0)) < 32
    assert all(marked(0, prob=1.0)) and sum(marked(0, prob=0.0)) == 1  # never none: there must be something to learn


def test_times_follow_a_speed_that_wanders():
    """Clicks are heard where their times say."""
    changed = augment(1, time_warp=0.4, speed_perturb=[0.9])
    wave, spans = np.zeros(48000, np.float32), np.array([[0.3, 0.7], [1.1, 1.9], [2.2, 2.9]])
    for time in spans.ravel():
        wave[int(time * 16000) - 20 : int(time * 16000) + 20] = 0.5
    heard = np.flatnonzero(changed.wave(wave) > 0.2) / 16000
    clicks = [click.mean() for click in np.split(heard, np.flatnonzero(np.diff(heard) > 0.02) + 1)]
    assert clicks == pytest.approx(changed.times(spans).ravel().tolist(), abs=5e-4)
    stretched = np.diff(changed.times(spans).ravel()) / np.diff(spans.ravel())
    assert stretched.std() > 0.05 and (stretched > 1 / 0.9 / 1.4).all() and (stretched < 1.4 / 0.9).all()
    longer = augment(1, time_warp=0.4, speed_perturb=[0.9]).times(np.array([0.3, 25.0]))
    assert longer[0] == pytest.approx(changed.times(spans)[0, 0])  # whatever comes later


def test_times_follow_the_speed():
    changed = augment(speed_perturb=[1.25])
    row = task(slot_prob=1.0).example(Told(), sample(), np.zeros(99), changed)
    assert row["spans"].ravel().tolist() == pytest.approx([0.08, 0.24, 0.24, 0.72])


@pytest.mark.parametrize(
    "given,said",
    [
        (sample(text="turn it on"), r"3 words, 2 pairs of timestamps; the words are \['turn', 'it', 'on'\], the time"),
        (sample(spans=None), "no timestamps in the row"),
        (sample(text="  "), "no word"),
    ],
)
def test_rows_that_cannot_be_learnt_from(given, said):
    with pytest.raises(UserError, match=said):
        task().example(Told(), given, np.zeros(99), augment())


def test_a_family_that_does_not_align_is_refused():
    class Deaf:
        name = "deaf"

    with pytest.raises(UserError, match="task alignment needs a family that aligns; deaf does not"):
        open_task("alignment", Deaf())
