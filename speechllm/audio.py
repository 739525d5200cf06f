"""Audio from anywhere as float32 mono at the model's rate, and its length from the header alone.

Shapes: N samples of the result, F sample frames of the recording, C channels.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import struct
import subprocess
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, NamedTuple

import numpy as np
import soundfile

from speechllm.errors import UserError
from speechllm.sample import Clip

FRAME_MS = 25  # one fbank frame: less audio makes no feature
TOLERANCE = 0.005  # seconds that a clip may end after its recording: times in segments are often rounded to 10 ms
STREAMED = 0x7FFF0000  # wav headers written to a pipe (sox, ffmpeg) promise this many bytes or more: length unknown
PLAIN = {1, 3, 6, 7, 0xFFFE}  # wav codings of fixed width: PCM, float, A-law, mu-law, extensible
LOUDEST = 2.0  # float files may overshoot full scale a little; beyond this they are on another scale, such as 32768
HEAD = 65536  # bytes that a URL is asked for when only its header is wanted
TRIES, TIMEOUT = 4, (10, 60)  # of a URL; seconds to connect and between bytes
BLOCK = 64  # clips that one thread measures at a time


class AudioError(UserError):
    """A recording that cannot be used. The message names it, says what was found and ends with the mend."""


class Recording(NamedTuple):
    """An open recording: ``file`` stands at its first byte, ``size`` is where the file around it ends."""

    file: BinaryIO
    size: int
    in_ark: bool = False


class Header(NamedTuple):
    """Sample frames per second, and how many there are (F)."""

    rate: int
    frames: int


def read(clip: Clip, rate: int = 16000, allow_pipes: bool = False) -> np.ndarray:
    """The samples of a clip.

    Only the clip's stretch of a file is decoded (of an mp3 also what precedes it); a URL is fetched whole.

    Args:
        clip: a file that libsndfile knows (wav, flac, mp3, ogg), ``ark:offset``, a URL or a Kaldi pipe.
        rate: samples per second of the result; other rates are converted by soxr (HQ).
        allow_pipes: run the commands of Kaldi pipes.

    Returns:
        (N,) float32 in [-1, 1], the mean of the channels.

    Raises:
        AudioError: what :func:`duration` finds, or samples that do not decode or are NaN or infinite.
    """
    with _open(clip.source, allow_pipes) as recording:
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
    """Seconds of a clip, from the header alone (a pipe is run; a URL is asked for its first 64 KiB).

    Raises:
        AudioError: no such file, empty, not audio, truncated as far as header and size tell, shorter than one
            frame of 25 ms, or a clip that ends after its recording.
    """
    with _open(clip.source, allow_pipes, only_head=True) as recording:
        header = _header(recording)
        first, last = _stretch(clip, header)
    return (last - first) / header.rate


def durations(
    clips: Iterable[Clip], workers: int = 4, allow_pipes: bool = False, decode: bool = False
) -> Iterator[float | AudioError]:
    """Seconds of each clip, or what is wrong with it, in the given order; several threads look.

    Args:
        decode: read all samples too, which finds what no header tells (NaN, a damaged flac).
    """

    def measure(block: list[Clip]) -> list[float | AudioError]:
        found: list[float | AudioError] = []
        for clip in block:
            try:
                if decode:
                    read(clip, allow_pipes=allow_pipes)
                found.append(duration(clip, allow_pipes))
            except AudioError as error:
                found.append(error)
        return found

    clips = iter(clips)
    pool = ThreadPoolExecutor(workers)
    try:
        for block in pool.map(measure, iter(lambda: list(itertools.islice(clips, BLOCK)), [])):
            yield from block
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _open(source: str, allow_pipes: bool, only_head: bool = False) -> Iterator[Recording]:
    """Open any kind of source. What goes wrong while it is open becomes an AudioError that begins with its name."""
    try:
        if source.endswith("|"):
            body = _run(source, allow_pipes)
            yield Recording(io.BytesIO(body), len(body))
        elif source.startswith(("http://", "https://")):
            body, size = _fetch_head(source) if only_head else _fetch(source)
            yield Recording(io.BytesIO(body), size)
        else:
            ark = re.fullmatch(r"(.+):(\d+)", source)
            with open(ark[1] if ark else source, "rb") as file:
                file.seek(int(ark[2]) if ark else 0)
                yield Recording(file, os.fstat(file.fileno()).st_size, in_ark=bool(ark))
    except FileNotFoundError:
        raise AudioError(f"{source}: no such file; correct the path, or put the file there") from None
    except OSError as error:
        raise AudioError(f"{source}: {error.strerror or error}; give a file that can be read") from error
    except AudioError as error:
        raise AudioError(f"{source}: {error}") from error.__cause__


def _run(source: str, allow_pipes: bool) -> bytes:
    """The output of a Kaldi pipe, which is by definition a shell command and a ``|``."""
    if not allow_pipes:
        raise AudioError("a pipe is a command, which is not run unasked; allow such commands with ++allow_pipes=true")
    done = subprocess.run(source.rstrip("|"), shell=True, capture_output=True)
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise AudioError(f"the command ended with status {done.returncode} ({last}); run it by hand to see why")
    return done.stdout


def _fetch(url: str, headers: dict[str, str] | None = None) -> tuple[bytes, int]:
    """The body of a URL, or that range of it which the headers ask for, and the bytes of the whole."""
    import requests

    for attempt in range(TRIES):
        time.sleep(2**attempt - 1)  # 0, 1, 3, 7 s
        try:
            response = requests.get(url, headers=headers, timeout=TIMEOUT)
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            reason = f"{type(error).__name__}, {attempt + 1} tries"
            continue
        except requests.RequestException as error:  # such as a malformed URL
            raise AudioError(f"{error}; correct the URL") from error
        if response.ok:
            total = re.search(r"/(\d+)$", response.headers.get("Content-Range", ""))
            return response.content, int(total[1]) if total else len(response.content)
        reason = f"HTTP {response.status_code} {response.reason}"
        if response.status_code < 500 and response.status_code != 429:
            break
    raise AudioError(f"the server does not give it ({reason}); correct the URL, or download the file and give its path")


def _fetch_head(url: str) -> tuple[bytes, int]:
    """The start of a wav or flac, which tells the length; any other body whole."""
    body, size = _fetch(url, {"Range": f"bytes=0-{HEAD - 1}"})
    enough = body[:4] == b"fLaC" or (body[:4] == b"RIFF" and b"data" in body)
    return (body, size) if enough or size == len(body) else _fetch(url)


def _header(recording: Recording) -> Header:
    """Rate and length. The file stands at the recording's first byte again afterwards."""
    file, size, in_ark = recording
    start = file.tell()
    magic = file.read(12)
    if not magic:
        raise AudioError("the file is empty, or ends before the ark's offset; make it anew or remove the utterance")
    try:
        header = _riff(file, size) if magic[:4] + magic[8:] == b"RIFFWAVE" else None
        if header:
            return header
        file.seek(start)
        if in_ark:
            rate, wave = _load_ark(file)
            return Header(rate, len(wave))
        if magic[:4] == b"OggS":
            _check_ogg_end(file, size)
        with _sndfile(file) as sound:
            return Header(sound.samplerate, sound.frames)
    finally:
        file.seek(start)


def _riff(file: BinaryIO, size: int) -> Header | None:
    """The header of a wav, from its chunks; None for codings whose length only libsndfile knows.

    By hand, since libsndfile takes a truncated file for a short one, and because it is several times faster.
    """
    rate = width = 0
    while len(chunk := file.read(8)) == 8:
        name, length = struct.unpack("<4sI", chunk)
        if name == b"data" and width:
            held = size - file.tell()
            if held < length < STREAMED:
                raise AudioError(
                    f"truncated: its header promises {length} bytes of samples, the file holds {held}; copy it anew"
                )
            return Header(rate, min(length, held) // width)
        if name == b"fmt " and length >= 16:
            coding, _, rate, _, width = struct.unpack("<HHIIH", file.read(14))
            if coding not in PLAIN or not rate:
                return None
            length -= 14
        file.seek(length + length % 2, os.SEEK_CUR)
    raise AudioError("truncated: the file ends within its wav header; copy it anew")


def _check_ogg_end(file: BinaryIO, size: int) -> None:
    """Refuse an ogg whose last page is cut or not marked as the last (RFC 3533); libsndfile takes both silently."""
    file.seek(max(0, size - HEAD))  # a page has at most 65,307 bytes
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
    if recording.in_ark:
        _, wave = _load_ark(recording.file)
        zero, scale = {"u1": (128, 128), "i2": (0, 32768)}.get(wave.dtype.str[1:], (0, 1))  # kaldiio gives wavs as held
        return (wave[first:last].reshape(last - first, -1).astype(np.float32) - zero) / scale
    with _sndfile(recording.file) as sound:
        # An mp3 frame builds on bits of those before it: after a seek, libsndfile's first frames can be noise.
        start = 0 if sound.format == "MP3" else first
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
