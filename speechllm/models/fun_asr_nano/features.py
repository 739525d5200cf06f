"""Fun-ASR's front end: Kaldi filterbanks at a low frame rate."""

from __future__ import annotations

import numpy as np

MEL_BINS, STACK, SHIFT = 80, 7, 6


def fbank(wave: np.ndarray, rate: int) -> np.ndarray:
    """Kaldi log-mel filterbank (T, 80) as Fun-ASR's front end: 2^15 scale, Hamming, 25/10 ms, no dither."""
    import kaldi_native_fbank as knf

    options = knf.FbankOptions()
    options.frame_opts.samp_freq = rate
    options.frame_opts.window_type = "hamming"
    options.frame_opts.dither = 0.0
    options.mel_opts.num_bins = MEL_BINS
    options.energy_floor = 0.0
    computer = knf.OnlineFbank(options)
    computer.accept_waveform(rate, (wave * 32768.0).tolist())  # a list is converted faster than an array
    computer.input_finished()
    frames = [computer.get_frame(i) for i in range(computer.num_frames_ready)]
    return np.stack(frames) if frames else np.zeros((0, MEL_BINS), np.float32)


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
