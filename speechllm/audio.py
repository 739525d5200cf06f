"""Audio from anywhere as float32 mono at the model's rate, and its length from the header alone.

Shapes: N samples of the result, F sample frames of the recording, C channels.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np
import soundfile

from speechllm.processes import WORKERS, batched, ordered
from speechllm.sample import Clip
from speechllm.sources import AT_ONCE, AudioError, Recording, is_url, open_source

FRAME_MS = 25  # one fbank frame: less audio makes no feature
TOLERANCE = 0.005  # seconds that a clip may end after its recording: times in segments are often rounded to 10 ms
STREAMED = 0x7FFF0000  # wav headers written to a pipe (sox, ffmpeg) promise this many bytes or more: length unknown
PLAIN = {1, 3, 6, 7, 0xFFFE}  # wav codings of fixed width: PCM, float, A-law, mu-law, extensible
LOUDEST = 2.0  # float files may overshoot full scale a little; beyond this they are on another scale, such as 32768
HEAD = 512  # bytes, in which most wavs have their header
OGG_PAGE = 65536  # bytes; a page has at most 65,307
BLOCK = 128  # clips that one process measures at a time
T, Result = TypeVar("T"), TypeVar("Result")


class Header(NamedTuple):
    """Sample frames per second, and how many there are (F)."""

    rate: int
    frames: int


def read(clip: Clip, rate: int = 16000, allow_pipes: bool = False) -> np.ndarray:
    """The samples of a clip.

    Only the clip's stretch of a file is decoded (of an mp3 also what precedes it); a URL is fetched whole.

    Args:
        clip: a file that libsndfile knows (wav, flac, mp3, ogg), ``ark:offset``, ``shard.tar:offset``, a URL or a
            Kaldi pipe.
        rate: samples per second of the result; other rates are converted by soxr (HQ).
        allow_pipes: run the commands of Kaldi pipes.

    Returns:
        (N,) float32 in [-1, 1], the mean of the channels.

    Raises:
        AudioError: what :func:`duration` finds, or samples that do not decode or are NaN or infinite.
    """
    with open_source(clip.source, allow_pipes) as recording:
        header = _header(recording)
        first, last = _stretch(clip, header)
        wave = _decode(recording, first, last).mean(axis=1)
        if not np.isfinite(wave).all():
            second = (first + int(np.isfinite(wave).argmin())) / header.rate
            raise AudioError(f"NaN or infinite samples, the first at {second:.3f} s; make the file anew")
        if (peak := np.abs(wave).max()) > LOUDEST:
            raise AudioError(f"samples up to {peak:.0f}, where 1 is full scale; scale the file's float samples")
    if header.rate != rate:
        import soxr

        wave = soxr.resample(wave, header.rate, rate, quality="HQ")
    return np.clip(wave, -1.0, 1.0)


def duration(clip: Clip, allow_pipes: bool = False) -> float:
    """Seconds of a clip, from the header alone (a pipe is run; a wav or flac at a URL costs its first 64 KiB).

    Raises:
        AudioError: no such file, empty, not audio, truncated as far as header and size tell, shorter than one
            frame of 25 ms, or a clip that ends after its recording.
    """
    (length,) = measure([clip], allow_pipes)
    if isinstance(length, AudioError):
        raise length
    return length


def durations(
    clips: Iterable[Clip], workers: int = WORKERS, allow_pipes: bool = False, decode: bool = False
) -> Iterator[float | AudioError]:
    """Seconds of each clip, or what is wrong with it, in the given order; several processes look.

    Args: as of :func:`measure`.
    """
    work = functools.partial(measure, allow_pipes=allow_pipes, decode=decode)
    for _, found in ordered(work, batched(clips, BLOCK), workers):
        yield from found


def measure(clips: Sequence[Clip], allow_pipes: bool = False, decode: bool = False) -> list[float | AudioError]:
    """Seconds of each of a few clips, or what is wrong with it.

    A recording that several of them are cut from is opened once; URLs are asked several at a time.

    Args:
        decode: read all samples too, which finds what no header tells (NaN, a damaged flac).
    """

    def judge(clip: Clip) -> float | AudioError:
        if isinstance(header := headers[clip.source], AudioError):
            return header
        try:
            first, last = _stretch(clip, header)
        except AudioError as error:
            return AudioError(f"{clip.source}: {error}")
        try:
            if decode:
                read(clip, allow_pipes=allow_pipes)
        except AudioError as error:
            return error
        return (last - first) / header.rate

    sources = list(dict.fromkeys(clip.source for clip in clips))
    headers = dict(zip(sources, _each(lambda source: _look(source, allow_pipes), sources, sources), strict=True))
    return _each(judge, clips, [clip.source for clip in clips])


def _each(work: Callable[[T], Result], items: Sequence[T], sources: Sequence[str]) -> list[Result]:
    """``work`` of each item, in order; those whose source is a URL several at a time, since they mostly wait."""
    far = [item for item, source in zip(items, sources, strict=True) if is_url(source)]
    if not far:
        return [work(item) for item in items]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        done = dict(zip(far, pool.map(work, far), strict=True))
    return [done[item] if item in done else work(item) for item in items]


def _look(source: str, allow_pipes: bool) -> Header | AudioError:
    try:
        with open_source(source, allow_pipes, only_head=True) as recording:
            return _header(recording)
    except AudioError as error:
        return error


def _header(recording: Recording) -> Header:
    """Rate and length. The file may stand anywhere afterwards."""
    file, size, start, in_ark = recording
    head = file.read(HEAD)
    if not head:
        raise AudioError("the file is empty, or ends before the ark's offset; make it anew or remove the utterance")
    if head[:4] + head[8:12] == b"RIFFWAVE" and (header := _riff(recording, head)):
        return header
    file.seek(start)
    if in_ark:
        rate, wave = _load_ark(file)
        return Header(rate, len(wave))
    if head[:4] == b"OggS":
        _check_ogg_end(file, size)
    with _sndfile(file) as sound:
        return Header(sound.samplerate, sound.frames)


def _riff(recording: Recording, head: bytes) -> Header | None:
    """The header of a wav, from its chunks; None for codings whose length only libsndfile knows.

    By hand, since libsndfile takes a truncated file for a short one, and because it is several times faster.

    Args:
        head: the recording's first bytes.
    """
    file, size, start, _ = recording
    at, rate, width = 12, 0, 0
    while True:
        chunk = head[at : at + 22]
        if len(chunk) < 22:
            file.seek(start + at)
            chunk = file.read(22)
        if len(chunk) < 8:
            raise AudioError("truncated: the file ends within its wav header; copy it anew")
        name, length = struct.unpack_from("<4sI", chunk)
        at += 8
        if name == b"data" and width:
            held = size - start - at
            if held < length < STREAMED:
                raise AudioError(
                    f"truncated: its header promises {length} bytes of samples, the file holds {held}; copy it anew"
                )
            return Header(rate, min(length, held) // width)
        if name == b"fmt " and length >= 16 and len(chunk) == 22:
            coding, _, rate, _, width = struct.unpack_from("<HHIIH", chunk, 8)
            if coding not in PLAIN or not rate:
                return None
        at += length + length % 2


def _check_ogg_end(file: BinaryIO, size: int) -> None:
    """Refuse an ogg whose last page is cut or not marked as the last (RFC 3533); libsndfile takes both silently."""
    file.seek(max(0, size - OGG_PAGE))
    tail = file.read()
    page = tail[tail.rfind(b"OggS") :]
    whole = len(page) > 27 and 27 + page[26] + sum(page[27 : 27 + page[26]]) <= len(page)
    if not whole or not page[5] & 4:
        raise AudioError("truncated: the file ends before the last page of its ogg stream; copy it anew")
    file.seek(0)


def _sndfile(file: BinaryIO) -> soundfile.SoundFile:
    try:
        return soundfile.SoundFile(file)
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: a name in .raw, which has no header
        raise AudioError("not an audio file; give a wav, flac, mp3 or ogg file") from error


def _load_ark(file: BinaryIO) -> tuple[int, np.ndarray]:
    """Rate and samples (F,) or (F, C) of the ark entry at which the file stands."""
    import kaldiio.matio

    start = file.tell()
    if not file.read(5).startswith((b"RIFF", b"fLaC", b"AUDIO")):  # others hold features, or pickled code that runs
        raise AudioError("no audio at this offset of the ark; give the scp that was written with it")
    file.seek(start)
    try:
        return kaldiio.matio.read_kaldi(file)
    except Exception as error:  # kaldiio lets through whatever its decoders raise
        raise AudioError(f"the ark's entry does not decode ({error}); write the ark anew") from error


def _decode(recording: Recording, first: int, last: int) -> np.ndarray:
    """Sample frames ``first`` to ``last`` of an open recording, (F, C) float32 with full scale at 1."""
    recording.file.seek(recording.start)
    if recording.in_ark:
        _, wave = _load_ark(recording.file)
        zero, scale = {"u1": (128, 128), "i2": (0, 32768)}.get(wave.dtype.str[1:], (0, 1))  # kaldiio gives wavs as held
        return (wave[first:last].reshape(last - first, -1).astype(np.float32) - zero) / scale
    with _sndfile(recording.file) as sound:
        # An mp3 frame builds on bits of those before it: after a seek, libsndfile's first frames can be noise.
        start = max(0, first - sound.samplerate) if sound.format == "MP3" else first
        try:
            sound.seek(start)
            wave = sound.read(last - start, dtype="float32", always_2d=True)[first - start :]
        except soundfile.LibsndfileError as error:
            raise AudioError(f"damaged or truncated: {error.error_string} Copy the file anew") from error
    if len(wave) < last - first:
        raise AudioError(
            f"truncated: {len(wave)} of {last - first} samples of the clip can be decoded; copy the file anew"
        )
    return wave


def _stretch(clip: Clip, header: Header) -> tuple[int, int]:
    """The first sample frame of a clip and the one after its last."""
    rate, frames = header
    whole = frames / rate
    end = whole if clip.end is None else clip.end
    if not frames:
        raise AudioError("no samples in the file; make it anew or remove the utterance")
    if max(clip.start, end) > whole + TOLERANCE:
        raise AudioError(
            f"the clip goes from {clip.start:.3f} to {end:.3f} s, the recording to {whole:.3f} s; correct the times"
        )
    first, last = round(clip.start * rate), min(round(end * rate), frames)
    if first < 0 or (last - first) * 1000 < FRAME_MS * rate:
        raise AudioError(
            f"from {clip.start:.3f} to {end:.3f} s is too short, a frame takes {FRAME_MS} ms; "
            "correct the times or remove the utterance"
        )
    return first, last
