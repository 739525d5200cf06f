"""Long audio in pieces: where it is cut, and how the texts of its pieces become one.

Shapes: N samples of a block, F frames of 10 ms.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, pairwise
from math import ceil, inf

import numpy as np

from speechllm import audio
from speechllm.errors import UserError
from speechllm.files import atomic_write
from speechllm.hub import resolve
from speechllm.sample import Clip, Sample, speech_length
from speechllm.sources import is_url, open_source
from speechllm.text.mixed import HAN, KANA

RATE = 16000  # samples per second at which places to cut are looked for
BLOCK = 60  # seconds of a recording that are in memory at a time
FRAMES = 100  # per second
PAUSE = 31  # frames of the quiet stretch that is cut in its middle
OVER = 0.02  # seconds by which FSMN-VAD may exceed its max_single_segment_time
UNSPACED = re.compile(f"[{HAN}{KANA}\u3000-\u303f\u30fb\u30fc\uff01-\uff65]")  # Chinese and Japanese, with their marks

Blocks = Iterable[np.ndarray]
Spans = list[tuple[float, float]]


class Pieced(Sequence):
    """Samples, and behind them the pieces of the long ones, as samples of their own.

    Args:
        lengths: frames of 10 ms of each sample.
        clips: the pieces of each long sample, by its index, in order.

    Attributes:
        pieces: of each long sample, by its index, the indices of its pieces.
        lengths: (samples and pieces,) frames of 10 ms.
    """

    def __init__(self, samples: Sequence[Sample], lengths: Sequence[int], clips: dict[int, list[Clip]]):
        self.samples, self.pieces, self._behind = samples, {}, []
        for index, found in clips.items():
            self.pieces[index] = range(len(self), len(self) + len(found))
            whole = samples[index]
            self._behind += [replace(whole, clip=c, speech_length=speech_length(c.end - c.start)) for c in found]
        behind = [piece.speech_length for piece in self._behind]
        self.lengths = np.concatenate([np.asarray(lengths, np.int64), np.asarray(behind, np.int64)])

    def __len__(self) -> int:
        return len(self.samples) + len(self._behind)

    def __getitem__(self, index: int) -> Sample:
        first = len(self.samples)
        return self.samples[index] if index < first else self._behind[index - first]

    def span(self, index: int, piece: int) -> dict[str, float]:
        """Where a piece lies in its sample: ``start`` and ``end`` in seconds."""
        begin, clip = self.samples[index].clip.start, self[piece].clip
        return {"start": round(clip.start - begin, 3), "end": round(clip.end - begin, 3)}


def cut(clip: Clip, find: Callable[[Blocks], Spans], folder: str, allow_pipes: bool = False) -> list[Clip]:
    """The pieces of a long clip, in order.

    Args:
        find: tells where they are: :class:`QuietPoints` or :class:`Vad`.
        folder: takes a copy of a recording that would otherwise be fetched, or made by its pipe, for each piece anew.

    Raises:
        AudioError: the clip cannot be read.
    """
    if is_url(clip.source) or clip.source.endswith("|"):
        clip = clip._replace(source=_copy(clip.source, folder, allow_pipes))
    seconds = audio.duration(clip)
    spans = find(_blocks(clip, seconds))
    return [Clip(clip.source, clip.start + start, clip.start + min(end, seconds)) for start, end in spans]


def _copy(source: str, folder: str, allow_pipes: bool) -> str:
    path = os.path.join(folder, hashlib.sha256(source.encode()).hexdigest()[:16])
    if not os.path.exists(path):
        with open_source(source, allow_pipes) as recording:
            body = recording.file.read()
        with atomic_write(path, "wb") as file:
            file.write(body)
    return path


def _blocks(clip: Clip, seconds: float) -> Iterator[np.ndarray]:
    """The samples of a clip, (N,) float32 each: blocks of 60 s, but for the last, of 1 s to 61 s."""
    starts = [clip.start + BLOCK * i for i in range(max(1, ceil((seconds - 1) / BLOCK)))]
    for start, end in pairwise([*starts, clip.start + seconds]):
        yield audio.read(Clip(clip.source, start, end), RATE)


class QuietPoints:
    """Cuts where it is quiet. The pieces hold all samples, and take from a quarter of ``longest`` seconds to all of it.

    A cut lies in the second half of what its piece may take, in the middle of the 0.3 s with the least energy there;
    of several such, the last.
    """

    def __init__(self, longest: float):
        self.longest = int(longest * FRAMES)

    def __call__(self, blocks: Blocks) -> Spans:
        """(start, end) of each piece in seconds; the last ends with the audio.

        Args:
            blocks: (N,) each.
        """
        energy = np.concatenate([_energy(block) for block in blocks])  # (F,)
        smooth = np.convolve(energy, np.ones(PAUSE), "same")
        cuts = [0]
        while len(energy) - cuts[-1] > self.longest:
            low = cuts[-1] + self.longest // 2
            high = min(cuts[-1] + self.longest, len(energy) - self.longest // 4)
            cuts.append(high - int(smooth[low : high + 1][::-1].argmin()))
        return list(pairwise([*(cut / FRAMES for cut in cuts), inf]))


def _energy(block: np.ndarray) -> np.ndarray:
    """Mean square of every 10 ms of a block, (F,)."""
    starts = np.arange(0, len(block), RATE // FRAMES)
    return np.add.reduceat(np.square(block), starts) / np.diff(starts, append=len(block))


class Vad:
    """Finds speech by funasr's FSMN-VAD, on the CPU; what lies between is left out.

    Args:
        name: ``fsmn-vad``, another name that funasr knows, or a folder.
        hub: ``ms`` (ModelScope) or ``hf`` (Hugging Face), where a name is looked up.
        longest: seconds that a piece may take.

    Raises:
        UserError: funasr does not load it, or it is no VAD.
    """

    def __init__(self, name: str, hub: str, longest: float):
        from funasr import AutoModel
        from funasr.download.name_maps_from_hub import name_maps_hf, name_maps_ms

        names = name_maps_ms if hub == "ms" else name_maps_hf
        try:
            with _threads_kept():
                self.model = AutoModel(
                    model=resolve(names.get(name, name), hub),
                    device="cpu",
                    ncpu=1,  # more would hang in a forked worker
                    max_single_segment_time=int((longest - OVER) * 1000),
                    disable_update=True,
                    disable_pbar=True,
                )
            self([np.zeros(RATE, np.float32)])
        except Exception as error:  # funasr lets through whatever happens in it
            reason = error if isinstance(error, UserError) else f"funasr does not load it as a VAD ({error!r:.300})"
            raise UserError(
                f"vad_model {name}: {reason}. Or leave ++vad_model out: then long audio is cut at quiet points"
            ) from error

    def __call__(self, blocks: Blocks) -> Spans:
        """(start, end) of each stretch of speech in seconds.

        Args:
            blocks: (N,) each, as :func:`_blocks` makes them.
        """
        cache, found = {}, []
        with _threads_kept():
            for block, following in pairwise(chain(blocks, [None])):
                last, chunk = following is None, BLOCK * 1000  # ms
                try:
                    found += self.model.generate(input=block, cache=cache, is_final=last, chunk_size=chunk)[0]["value"]
                except Exception as error:  # one recording's fault must not end the decoding of a set
                    raise UserError(f"funasr's VAD fails on it ({error!r:.300}); leave ++vad_model out") from error
        return [(start / 1000, end / 1000) for start, end in found]


@contextlib.contextmanager
def _threads_kept() -> Iterator[None]:
    """Give torch its number of threads back, which funasr's AutoModel sets for the whole process, at every call."""
    import torch

    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def join_texts(texts: Iterable[str]) -> str:
    """The texts of pieces as one: no blank between two that meet in Chinese or Japanese, one between all others."""
    joined = ""
    for text in filter(None, map(str.strip, texts)):
        close = joined and UNSPACED.match(joined[-1]) and UNSPACED.match(text[0])
        joined += text if close or not joined else f" {text}"
    return joined
