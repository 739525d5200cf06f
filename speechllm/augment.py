"""The random changes of an utterance in training: speed, reverberation, noise, volume, SpecAugment; all off by default.

N samples of a wave, T frames of 10 ms, F mel bins.
"""

from __future__ import annotations

import math
import zlib

import numpy as np

from speechllm import audio
from speechllm.config import DatasetConf
from speechllm.errors import UserError
from speechllm.formats.kaldi import read_table
from speechllm.sample import Clip

STRETCH = 0.3  # seconds after which the speed of a warped utterance changes


class Recordings:
    """The recordings of a wav.scp. All are measured when it is opened, so that a bad one is found before training.

    Raises:
        UserError: no such scp, none in it, or one that cannot be used, by file and line.
    """

    def __init__(self, scp: str, rate: int, allow_pipes: bool):
        self.rate, self.allow_pipes = rate, allow_pipes
        table = read_table(scp)
        if not table:
            raise UserError(f"{scp}: no recording in it; write one `id path` per line")
        self.clips = [(Clip(source), f"{where}: {key}") for key, (source, where) in table.items()]
        # One worker: nothing is forked beside an opened GPU.
        self.seconds = list(audio.durations((clip for clip, _ in self.clips), 1, allow_pipes))
        for found, (_, name) in zip(self.seconds, self.clips, strict=True):
            if isinstance(found, audio.AudioError):
                raise UserError(f"{name}: {found}")

    def whole(self, draw: np.random.Generator) -> np.ndarray:
        """One of them, drawn at random: (N,) float32, not all zero."""
        clip, name = self.clips[draw.integers(len(self.clips))]
        wave = self._read(clip, name)
        if not wave.any():
            raise UserError(f"{name}: {clip.source}: silent; make it anew or remove the line")
        return wave

    def stretch(self, draw: np.random.Generator, size: int) -> np.ndarray:
        """(size,) float32: one of them from a random place on; a shorter one goes round and round."""
        chosen = draw.integers(len(self.clips))
        clip, name = self.clips[chosen]
        wanted = max(size / self.rate, audio.FRAME_MS / 1000)
        if self.seconds[chosen] > wanted:  # only the stretch is decoded: a recording may last for hours
            start = draw.uniform(0, self.seconds[chosen] - wanted)
            return np.resize(self._read(clip._replace(start=start, end=start + wanted), name), size)
        wave = self._read(clip, name)
        return np.resize(np.roll(wave, draw.integers(len(wave))), size)

    def _read(self, clip: Clip, name: str) -> np.ndarray:
        try:
            return audio.read(clip, self.rate, self.allow_pipes)
        except audio.AudioError as error:
            raise UserError(f"{name}: {error}") from error


class Augmenter:
    """What a config asks for, with its numbers checked and its recordings found.

    Args:
        rate: samples per second of the waves to come.

    Raises:
        UserError: a number out of its range, or what :class:`Recordings` finds.
    """

    def __init__(self, conf: DatasetConf, seed: int, rate: int):
        _check(conf)
        self.conf, self.seed, self.rate = conf, seed, rate
        self.rooms = Recordings(conf.reverb.scp, rate, conf.allow_pipes) if conf.reverb.scp else None
        self.noises = Recordings(conf.noise.scp, rate, conf.allow_pipes) if conf.noise.scp else None

    def draw(self, epoch: int, key: str) -> Augment:
        """The changes of one utterance in one epoch."""
        return Augment(self, epoch, key)


class Augment:
    """Draws come from (seed, epoch, utterance id) alone, so that neither workers nor a resume change them.

    Each kind has a generator of its own: switching one on leaves the draws of the others as they were.
    """

    def __init__(self, augmenter: Augmenter, epoch: int, key: str):
        self.augmenter, self.conf = augmenter, augmenter.conf
        self.source = [augmenter.seed, epoch, zlib.crc32(key.encode())]

    def rng(self, kind: str) -> np.random.Generator:
        """The generator of one kind of draws; a task that draws too names a kind of its own."""
        return np.random.default_rng([*self.source, zlib.crc32(kind.encode())])

    def wave(self, wave: np.ndarray) -> np.ndarray:
        """The waveform (N,) at another speed, in a room, with noise, louder or quieter, in this order.

        What would be over full scale is made quieter as a whole, since clipping would distort it.
        """
        for change in (self._speed, self._warped, self._reverb, self._noise, self._volume):
            wave = change(wave)
        peak = np.abs(wave).max()
        return wave / peak if peak > 1 else wave

    def times(self, seconds: np.ndarray) -> np.ndarray:
        """When what was at these times of the recording is heard after :meth:`wave`; of any shape."""
        later = seconds / self._factor
        return np.interp(later, *self._warp(later.max())) if self.conf.time_warp else later

    @property
    def _factor(self) -> float:
        return float(self.rng("speed").choice(self.conf.speed_perturb)) if self.conf.speed_perturb else 1.0

    def _speed(self, wave: np.ndarray) -> np.ndarray:
        """Pitch moves with the speed, as in Kaldi."""
        import soxr

        speed, rate = self._factor, self.augmenter.rate
        return wave if speed == 1.0 else soxr.resample(wave, rate * speed, rate)

    def _warp(self, end: float) -> tuple[np.ndarray, np.ndarray]:
        """Times before and after, (knots,) each and linear between them, up to at least ``end``.

        The draws of a knot do not depend on how many follow.
        """
        draws = self.rng("warp").uniform(-1, 1, (math.ceil(end / STRETCH) + 2, 2))
        before = np.append(0.0, STRETCH * (np.arange(1, len(draws) + 1) + 0.4 * draws[:, 0]))
        speeds = np.exp(math.log1p(self.conf.time_warp) * draws[:, 1])
        return before, np.append(0.0, np.cumsum(np.diff(before) / speeds))

    def _warped(self, wave: np.ndarray) -> np.ndarray:
        """Pitch moves with the speed here too; samples between samples are those on the line between them."""
        if not self.conf.time_warp:
            return wave
        rate, end = self.augmenter.rate, len(wave) / self.augmenter.rate
        before, after = self._warp(end)
        count = int(np.interp(end, before, after) * rate)
        places = np.interp(np.arange(count) / rate, after, before) * rate
        return np.interp(places, np.arange(len(wave)), wave).astype(np.float32)

    def _reverb(self, wave: np.ndarray) -> np.ndarray:
        """The response counts from its peak, the direct sound, so that the speech neither moves nor grows longer."""
        rooms, draw = self.augmenter.rooms, self.rng("reverb")
        if not rooms or draw.random() >= self.conf.reverb.prob:
            return wave
        response = rooms.whole(draw)
        response = response[np.abs(response).argmax() :]
        cells = 1 << (len(wave) + len(response) - 2).bit_length()  # room for all of it: nothing wraps round
        made = np.fft.irfft(np.fft.rfft(wave, cells) * np.fft.rfft(response, cells), cells)[: len(wave)]
        return made * np.float32(_ratio(wave, made))

    def _noise(self, wave: np.ndarray) -> np.ndarray:
        """Both energies are those of the whole utterance; a silent stretch of noise adds nothing."""
        noises, draw = self.augmenter.noises, self.rng("noise")
        if not noises or draw.random() >= self.conf.noise.prob:
            return wave
        snr = draw.uniform(*self.conf.noise.snr)
        noise = noises.stretch(draw, len(wave))
        return wave + noise * np.float32(_ratio(wave, noise) * 10 ** (-snr / 20))

    def _volume(self, wave: np.ndarray) -> np.ndarray:
        if not self.conf.volume_perturb:
            return wave
        return wave * np.float32(10 ** (self.rng("volume").uniform(*self.conf.volume_perturb) / 20))

    def mel(self, mel: np.ndarray) -> np.ndarray:
        """SpecAugment on a log-mel spectrogram (T, F): masked cells take the mean of the utterance."""
        conf = self.conf.spec_aug
        if not (conf.time_masks or conf.freq_masks):
            return mel
        draw, mel, mean = self.rng("mel"), mel.copy(), mel.mean()
        for view, masks, width in ((mel, conf.time_masks, conf.time_width), (mel.T, conf.freq_masks, conf.freq_width)):
            for _ in range(masks):
                size = int(draw.integers(0, min(width, len(view) // 2) + 1))
                start = int(draw.integers(0, len(view) - size + 1))
                view[start : start + size] = mean
        return mel


def _ratio(wave: np.ndarray, other: np.ndarray) -> float:
    """What brings the other signal to the energy per sample of the wave; 0 where it is silent."""
    power, others = (float(np.mean(np.square(signal, dtype=np.float64))) for signal in (wave, other))
    return math.sqrt(power / others) if others else 0.0


def _check(conf: DatasetConf) -> None:
    def check(good: bool, key: str, found: object, wanted: str) -> None:
        if not good:
            raise UserError(f"dataset_conf.{key} is {found}; give {wanted}")

    check(all(0 < x < math.inf for x in conf.speed_perturb), "speed_perturb", conf.speed_perturb, "speeds above 0")
    check(0 <= conf.time_warp <= 1, "time_warp", conf.time_warp, "0 to 1")
    for key, pair in (("volume_perturb", conf.volume_perturb or [0.0, 0.0]), ("noise.snr", conf.noise.snr)):
        check(len(pair) == 2 and -math.inf < pair[0] <= pair[1] < math.inf, key, pair, "[lowest,highest] in dB")
    for key, share in (("noise.prob", conf.noise.prob), ("reverb.prob", conf.reverb.prob)):
        check(0 <= share <= 1, key, share, "a share from 0 to 1")
    for key in ("time_masks", "time_width", "freq_masks", "freq_width"):
        check(getattr(conf.spec_aug, key) >= 0, f"spec_aug.{key}", getattr(conf.spec_aug, key), "0 or more")
