"""Audio of every kind and fault. Tones are computed here; real recordings come from public corpora."""

import itertools
import os
import pickle
import struct
import time
import tracemalloc

import numpy as np
import pytest
import soundfile

from speechllm.audio import AudioError, duration, durations, read
from speechllm.sample import Clip, speech_length


def tone(seconds=1.0, rate=16000, hertz=440.0, peak=0.5):
    return (peak * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def write(path, wave, rate=16000, **options):
    soundfile.write(path, wave, rate, **options)
    return Clip(str(path))


def reason(call, *args):
    with pytest.raises(AudioError) as caught:
        call(*args)
    return str(caught.value)


@pytest.mark.parametrize(("ending", "error"), [("wav", 1e-4), ("flac", 1e-4), ("mp3", 0.08), ("ogg", 0.08)])
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_a_tone_survives_every_format_and_rate(tmp_path, ending, error, rate):
    clip = write(tmp_path / f"with space 语音.{ending}", tone(1.0, rate), rate)
    wave = read(clip)
    assert wave.dtype == np.float32 and wave.shape == (16000,)
    inside = slice(1600, -1600)  # a resampler rings at a sudden start and end
    assert np.abs(wave - tone())[inside].max() < error
    assert duration(clip) == 1.0


def test_the_model_may_ask_for_another_rate(tmp_path):
    clip = write(tmp_path / "a.wav", tone(0.5))
    assert np.abs(read(clip, 24000) - tone(0.5, 24000))[2400:-2400].max() < 1e-3


def test_channels_are_averaged(tmp_path):
    left, right = tone(peak=0.6), tone(peak=0.2)
    clip = write(tmp_path / "a.wav", np.stack([left, right], axis=1), subtype="FLOAT")
    assert np.allclose(read(clip), tone(peak=0.4), atol=1e-6)
    assert duration(clip) == 1.0


CODINGS = ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"]


@pytest.mark.parametrize(
    ("kind", "subtype"), [*itertools.product(["WAV", "WAVEX"], CODINGS), ("WAV", "IMA_ADPCM"), ("RF64", "PCM_16")]
)
def test_every_coding_of_a_wav(tmp_path, kind, subtype):
    clip = write(tmp_path / "a.wav", np.stack([tone(), tone()], axis=1), subtype=subtype, format=kind)
    assert duration(clip) == soundfile.info(clip.source).duration
    assert np.abs(read(clip)[:16000] - tone())[1000:].max() < 0.05  # ADPCM has to find the level first


@pytest.mark.parametrize("ending", ["wav", "flac", "mp3", "ogg"])
def test_a_clip_is_its_stretch_of_the_whole(tmp_path, ending):
    source = write(tmp_path / f"a.{ending}", tone(3.0, hertz=330)).source
    whole = read(Clip(source))
    part = Clip(source, 1.25, 2.0)
    assert np.abs(read(part) - whole[20000:32000]).max() < 1e-6
    assert duration(part) == 0.75
    assert len(read(Clip(source, 2.5))) == 8000


def test_a_clip_of_a_long_file_does_not_load_the_file(tmp_path):
    path = tmp_path / "long.wav"
    size = 2 * 16000 * 3600 * 8  # 8 h, 0.9 GB
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 16000, 32000, 2, 16)
    path.write_bytes(struct.pack("<4sI4s", b"RIFF", 36 + size, b"WAVE") + fmt + struct.pack("<4sI", b"data", size))
    os.truncate(path, 44 + size)  # sparse
    tracemalloc.start()
    wave = read(Clip(str(path), 20000.0, 20010.0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(wave) == 160000 and peak < 20e6
    assert duration(Clip(str(path))) == 8 * 3600


def test_a_wav_written_to_a_pipe_does_not_know_its_length(tmp_path):
    write(tmp_path / "a.wav", tone())
    body = bytearray((tmp_path / "a.wav").read_bytes())
    for promised in (0xFFFFFFFF, 0x7FFFF000):  # ffmpeg, sox
        body[40:44] = struct.pack("<I", promised)
        (tmp_path / "streamed.wav").write_bytes(body)
        clip = Clip(str(tmp_path / "streamed.wav"))
        assert duration(clip) == 1.0 and np.allclose(read(clip), tone(), atol=1e-4)


# Ark: written by kaldiio, as ESPnet and Kaldi's wav-copy write them.


def test_ark_offsets(tmp_path):
    kaldiio = pytest.importorskip("kaldiio")
    waves = {f"u{i}": (tone(0.5 + i / 10, hertz=200 + 100 * i) * 32767).astype(np.int16) for i in range(3)}
    ark, scp = tmp_path / "wav.ark", tmp_path / "wav.scp"
    kaldiio.save_ark(str(ark), {key: (16000, wave) for key, wave in waves.items()}, scp=str(scp))
    for line in scp.read_text().splitlines():
        key, source = line.split(maxsplit=1)
        assert np.allclose(read(Clip(source)), waves[key] / 32768, atol=1e-7)
        assert duration(Clip(source)) == len(waves[key]) / 16000
        assert np.allclose(read(Clip(source, 0.1, 0.2)), waves[key][1600:3200] / 32768, atol=1e-7)
    assert "ends before" in reason(duration, Clip(f"{ark}:99999999"))
    assert "no audio at this offset" in reason(read, Clip(f"{ark}:1"))


def test_ark_of_flac(tmp_path):
    kaldiio = pytest.importorskip("kaldiio")
    ark, scp = tmp_path / "wav.ark", tmp_path / "wav.scp"
    wave = (tone() * 32767).astype(np.int16)
    kaldiio.save_ark(
        str(ark), {"u": (wave, 16000)}, scp=str(scp), write_function="soundfile", write_kwargs={"format": "flac"}
    )
    clip = Clip(scp.read_text().split()[1])
    assert np.allclose(read(clip), wave / 32768, atol=1e-7) and duration(clip) == 1.0


def test_an_ark_never_runs_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    (tmp_path / "x.ark").write_bytes(b"u PKL" + pickle.dumps(Evil()))
    assert "no audio at this offset" in reason(read, Clip(f"{tmp_path}/x.ark:2"))
    assert not (tmp_path / "ran").exists()


# Faults. Each message begins with the source and ends with what to do.


def test_missing_empty_and_foreign_files(tmp_path):
    text = tmp_path / "a.mp3"
    text.write_text("not audio\n" * 100)
    raw = tmp_path / "a.raw"
    raw.write_bytes(bytes(32000))
    empty = tmp_path / "empty.wav"
    empty.touch()
    silent = write(tmp_path / "no_samples.wav", tone()[:0])
    for call in (duration, read):
        message = reason(call, Clip("/no/such file.wav"))
        assert message == "/no/such file.wav: no such file; correct the path, or put the file there"
        assert reason(call, Clip(str(text))).startswith(f"{text}: not an audio file; give")
        assert "not an audio file" in reason(call, Clip(str(raw)))
        assert "the file is empty" in reason(call, Clip(str(empty)))
        assert "no samples in the file" in reason(call, silent)
        assert "directory" in reason(call, Clip(str(tmp_path))).lower()


@pytest.mark.parametrize("ending", ["wav", "ogg"])
def test_truncation_shows_in_the_header(tmp_path, ending):
    clip = write(tmp_path / f"a.{ending}", tone(5.0))
    path = tmp_path / f"a.{ending}"
    body = path.read_bytes()
    for share in (0.2, 0.6, 0.99):
        path.write_bytes(body[: int(len(body) * share)])
        assert reason(duration, clip).startswith(f"{path}: truncated: ")
        assert "copy it anew" in reason(read, clip)


def test_an_ogg_that_lacks_its_last_page_whole(tmp_path):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 80000)
    clip = write(tmp_path / "a.ogg", noise)
    assert duration(clip) == 5.0
    os.truncate(tmp_path / "a.ogg", (tmp_path / "a.ogg").read_bytes().rfind(b"OggS"))
    assert 0 < soundfile.info(clip.source).duration < 5.0  # libsndfile takes it for a shorter recording
    assert "truncated" in reason(duration, clip)


def test_a_truncated_wav_names_both_sizes_and_a_cut_header_is_one_too(tmp_path):
    clip = write(tmp_path / "a.wav", tone())
    body = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(body[:20044])
    assert "promises 32000 bytes of samples, the file holds 20000" in reason(duration, clip)
    (tmp_path / "a.wav").write_bytes(body[:40])
    assert "within its wav header" in reason(duration, clip)


@pytest.mark.parametrize("ending", ["flac", "mp3"])
def test_truncation_shows_when_decoding(tmp_path, ending):
    clip = write(tmp_path / f"a.{ending}", tone(5.0))
    path = tmp_path / f"a.{ending}"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "truncated" in reason(read, clip)
    assert len(read(Clip(clip.source, 0.0, 1.0))) == 16000  # what precedes the cut is whole


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_no_numbers(tmp_path, value):
    wave = tone()
    wave[8000] = value
    clip = write(tmp_path / "a.wav", wave, subtype="FLOAT")
    assert duration(clip) == 1.0
    assert "NaN or infinite samples, the first at 0.500 s" in reason(read, clip)
    assert len(read(Clip(clip.source, 0.6, 0.9))) == 4800


def test_samples_on_the_scale_of_int16_are_refused(tmp_path):
    clip = write(tmp_path / "a.wav", tone() * 32768, subtype="FLOAT")
    assert "1 is full scale" in reason(read, clip)
    assert np.abs(read(write(tmp_path / "b.wav", tone(peak=1.2), subtype="FLOAT"))).max() == 1.0


def test_times_outside_the_recording(tmp_path):
    source = write(tmp_path / "a.wav", tone(2.0)).source
    for call in (duration, read):
        message = reason(call, Clip(source, 0.5, 2.5))
        assert "from 0.500 to 2.500 s" in message and "recording to 2.000 s" in message
        assert "correct the times" in reason(call, Clip(source, 3.0))
        assert "too short" in reason(call, Clip(source, 1.0, 0.5))
        assert "too short" in reason(call, Clip(source, -1.0, 0.5))
    assert duration(Clip(source, 1.0, 2.004)) == 1.0  # times rounded to 10 ms


def test_less_than_one_frame_is_too_short(tmp_path):
    assert "too short" in reason(duration, write(tmp_path / "a.wav", tone()[:399]))
    frame = write(tmp_path / "b.wav", tone()[:400])
    assert speech_length(duration(frame)) == 1 and len(read(frame)) == 400


# Pipes; URLs have a file of their own, test_remote.py.


def test_pipes_run_only_when_allowed(tmp_path):
    write(tmp_path / "a b.wav", tone())
    pipe = Clip(f"cat '{tmp_path}/a b.wav' |", 0.25, 0.75)
    for call in (duration, read):
        assert "++allow_pipes=true" in reason(call, pipe)
    assert duration(pipe, allow_pipes=True) == 0.5
    assert np.allclose(read(pipe, allow_pipes=True), tone()[4000:12000], atol=1e-4)
    with pytest.raises(AudioError, match=r"status 3 \(so sad\)"):
        read(Clip("echo so sad >&2; exit 3 |"), allow_pipes=True)
    with pytest.raises(AudioError, match="empty"):
        read(Clip("true |"), allow_pipes=True)


# Many at once, and real recordings.


def test_durations_come_in_order_with_the_faults_in_their_places(tmp_path):
    clips = [write(tmp_path / f"{i}.wav", tone(0.03 + i / 1000)) for i in range(200)]
    (tmp_path / "77.wav").unlink()
    wave = tone()
    wave[5] = np.nan
    write(tmp_path / "150.wav", wave, subtype="FLOAT")
    for decode, bad in ((False, [77]), (True, [77, 150])):
        found = list(durations(clips, workers=3, decode=decode))
        assert [i for i, one in enumerate(found) if isinstance(one, AudioError)] == bad
        assert all(found[i] == pytest.approx(0.03 + i / 1000, abs=1e-4) for i in range(200) if i not in (77, 150))


def test_segments_of_one_recording_need_one_look_at_it(tmp_path):
    write(tmp_path / "a.wav", tone(10.0))
    pipe = f"echo >> {tmp_path}/runs; cat {tmp_path}/a.wav |"
    clips = [Clip(pipe, start / 10, start / 10 + 1) for start in range(95)]
    found = list(durations(clips, allow_pipes=True))
    assert found[:91] == [pytest.approx(1.0)] * 91
    assert all("the recording to 10.000 s" in str(fault) for fault in found[91:])
    assert (tmp_path / "runs").read_text() == "\n"


@pytest.mark.parametrize("ending", ["wav", "flac"])
def test_a_segment_costs_its_stretch_alone(tmp_path, ending):
    """Ten seconds near the end of 400, against the whole: far under a fifth, whatever the machine."""
    clip = write(tmp_path / f"a.{ending}", tone(400.0))
    seconds = {}
    for part in (clip, Clip(clip.source, 380.0, 390.0)):
        times = []
        for _ in range(3):
            started = time.process_time()
            read(part)
            times.append(time.process_time() - started)
        seconds[part] = min(times)
    assert seconds.popitem()[1] < 0.2 * seconds.popitem()[1]


def test_headers_of_real_recordings_agree_with_libsndfile(shared_data):
    endings = {".wav", ".flac", ".mp3", ".ogg"}
    paths = sorted(path for path in shared_data.rglob("*") if path.suffix.lower() in endings)
    assert len(paths) > 1000
    for path, seconds in zip(paths, durations(Clip(str(path)) for path in paths), strict=True):
        assert seconds == soundfile.info(path).duration, path


def test_one_recording_at_three_rates(shared_data):
    """Mozilla's DeepSpeech keeps one utterance at 8 kHz, 16 kHz and 44.1 kHz stereo, converted by sox."""
    folder = shared_data / "fixtures" / "deepspeech"
    reference = read(Clip(str(folder / "LDC93S1_pcms16le_1_16000.wav")))
    for name in ("LDC93S1_pcms16le_2_44100.wav", "LDC93S1_pcms16le_1_8000.wav"):
        wave = read(Clip(str(folder / name)))
        assert abs(len(wave) - len(reference)) <= 2
        size = min(len(wave), len(reference))
        assert np.corrcoef(wave[:size], reference[:size])[0, 1] > 0.95
