"""Augmentation: off by default, drawn from (seed, epoch, utterance id) alone."""

import numpy as np
import pytest

from speechllm.augment import Augment
from speechllm.config import DatasetConf, SpecAugConf

WAVE = np.sin(2 * np.pi * 500 * np.arange(16000) / 16000).astype(np.float32)
MEL = np.random.default_rng(0).standard_normal((100, 80)).astype(np.float32)
CONF = DatasetConf(speed_perturb=[0.8, 1.0, 1.25], spec_aug=SpecAugConf(2, 20, 2, 10))


def test_nothing_changes_by_default():
    augment = Augment(DatasetConf(), 0, 0, "a")
    assert augment.wave(WAVE, 16000) is WAVE and augment.mel(MEL) is MEL


def test_the_same_draw_for_the_same_seed_epoch_and_id():
    first, again = (Augment(CONF, 1, 2, "utt").mel(MEL) for _ in range(2))
    assert np.array_equal(first, again)
    for other in (Augment(CONF, 2, 2, "utt"), Augment(CONF, 1, 3, "utt"), Augment(CONF, 1, 2, "utu")):
        assert not np.array_equal(first, other.mel(MEL))


def test_speed_moves_length_and_pitch_together():
    seen = {}
    for epoch in range(30):
        wave = Augment(CONF, 0, epoch, "a").wave(WAVE, 16000)
        spectrum = np.abs(np.fft.rfft(wave, 16000 * 4))
        seen[len(wave)] = spectrum.argmax() / 4  # hertz
    assert seen == pytest.approx({12800: 625, 16000: 500, 20000: 400}, abs=1)


def test_masks_are_as_wide_as_allowed_and_take_the_mean():
    for epoch in range(50):
        masked = Augment(CONF, 0, epoch, "a").mel(MEL)
        changed = masked != MEL
        rows, columns = changed.all(axis=1), changed.all(axis=0)
        assert rows.sum() <= 40 and columns.sum() <= 20
        assert np.array_equal(changed, rows[:, None] | columns[None, :])
        assert not changed.any() or np.allclose(masked[changed], MEL.mean(), atol=1e-6)
