"""The random draws of one utterance in one epoch: speed, SpecAugment. All off unless the config asks."""

from __future__ import annotations

import zlib

import numpy as np

from speechllm.config import DatasetConf


class Augment:
    """Draws come from (seed, epoch, utterance id) alone, so that neither workers nor a resume change them.

    Attributes:
        rng: the generator, for a task's own draws.
    """

    def __init__(self, conf: DatasetConf, seed: int, epoch: int, key: str):
        self.conf = conf
        self.rng = np.random.default_rng([seed, epoch, zlib.crc32(key.encode())])

    def wave(self, wave: np.ndarray, rate: int) -> np.ndarray:
        """The waveform (N,) at one of the configured speeds, drawn at random; pitch moves with it, as in Kaldi."""
        if not self.conf.speed_perturb:
            return wave
        import soxr

        speed = float(self.rng.choice(self.conf.speed_perturb))
        return wave if speed == 1.0 else soxr.resample(wave, rate * speed, rate)

    def mel(self, mel: np.ndarray) -> np.ndarray:
        """SpecAugment on a log-mel spectrogram (T, F): masked cells take the mean of the utterance."""
        conf = self.conf.spec_aug
        if not (conf.time_masks or conf.freq_masks):
            return mel
        mel, mean = mel.copy(), mel.mean()
        for view, masks, width in ((mel, conf.time_masks, conf.time_width), (mel.T, conf.freq_masks, conf.freq_width)):
            for _ in range(masks):
                size = int(self.rng.integers(0, min(width, len(view) // 2) + 1))
                start = int(self.rng.integers(0, len(view) - size + 1))
                view[start : start + size] = mean
        return mel
