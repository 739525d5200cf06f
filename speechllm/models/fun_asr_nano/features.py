"""Fun-ASR's front end: Kaldi filterbanks at a low frame rate."""

from __future__ import annotations

import functools

import numpy as np

MEL_BINS, STACK, SHIFT = 80, 7, 6
PREEMPHASIS = 0.97


def fbank(wave: np.ndarray, rate: int) -> np.ndarray:
    """Kaldi log-mel filterbank (T, 80) as Fun-ASR's front end: 2^15 scale, Hamming, 25/10 ms, no dither.

    kaldi-native-fbank gives the mel triangles alone: its own computation takes samples from Python one by one, which
    takes four times as long, and made training wait for features.
    """
    import torch

    window, bank = _tables(rate)
    size, shift = len(window), rate // 100
    if len(wave) < size:
        return np.zeros((0, MEL_BINS), np.float32)
    frames = torch.from_numpy(wave).mul(32768.0).unfold(0, size, shift)  # (T, size)
    frames = frames - frames.mean(1, keepdim=True)
    first, rest = frames[:, :1], frames[:, 1:]
    frames = torch.cat([first - PREEMPHASIS * first, rest - PREEMPHASIS * frames[:, :-1]], 1) * window
    power = torch.view_as_real(torch.fft.rfft(frames, 2 * len(bank) - 2)).square().sum(-1)  # (T, FFT / 2 + 1)
    return (power @ bank).clamp_(min=torch.finfo(torch.float32).eps).log_().numpy()


@functools.cache
def _tables(rate: int) -> tuple:
    """The window (size,), and Kaldi's mel triangles (FFT / 2 + 1, 80)."""
    import kaldi_native_fbank as knf
    import torch

    frames, mel = knf.FrameExtractionOptions(), knf.MelBanksOptions()
    frames.samp_freq, mel.num_bins = rate, MEL_BINS
    bank = torch.from_numpy(np.array(knf.MelBanks(mel, frames).get_matrix()).T.copy())
    return torch.hamming_window(rate // 40, periodic=False), bank


def stack_frames(mel: np.ndarray) -> np.ndarray:
    """Low frame rate: 7 frames side by side, every 6th (T, 80) -> (ceil(T / 6), 560); edge frames are repeated."""
    count = -(-len(mel) // SHIFT)
    left = (STACK - 1) // 2
    right = max((count - 1) * SHIFT + STACK - left - len(mel), 0)
    padded = np.concatenate([mel[:1].repeat(left, 0), mel, mel[-1:].repeat(right, 0)])
    return np.concatenate([padded[k : k + (count - 1) * SHIFT + 1 : SHIFT] for k in range(STACK)], axis=1)


def heard(frames: int) -> int:
    """How many of the adaptor's frames funasr gives to the LLM under ``use_low_frame_rate``: about an eighth."""
    for _ in range(2):
        frames = 1 + (frames - 1) // 2
    return (frames - 1) // 2 + 1
