"""Augmentation: off by default, drawn from (seed, epoch, utterance id) alone, of the strength that was asked for."""

import numpy as np
import pytest
import soundfile
from torch.utils.data import DataLoader

from speechllm.augment import Augmenter
from speechllm.batching import Draw, Rows
from speechllm.config import DatasetConf, NoiseConf, ReverbConf, SpecAugConf
from speechllm.errors import UserError
from speechllm.sample import Clip, Prompt, Sample

RATE = 16000
WAVE = 0.2 * np.sin(2 * np.pi * 500 * np.arange(RATE) / RATE).astype(np.float32)
MEL = np.random.default_rng(0).standard_normal((100, 80)).astype(np.float32)
MASKS = SpecAugConf(2, 20, 2, 10)
SPEEDS = [0.8, 1.0, 1.25]


def scp(folder, **waves):
    """A wav.scp with a float wav per name."""
    lines = []
    for name, wave in waves.items():
        soundfile.write(folder / f"{name}.wav", wave, RATE, subtype="FLOAT")
        lines.append(f"{name} {folder}/{name}.wav\n")
    (folder / "wav.scp").write_text("".join(lines))
    return str(folder / "wav.scp")


@pytest.fixture
def noise(tmp_path):
    """Three seconds of noise, longer than the utterance: (48000,), and its wav.scp."""
    wave = 0.1 * np.random.default_rng(1).standard_normal(3 * RATE).astype(np.float32)
    return wave, scp(tmp_path, noise=wave)


@pytest.fixture
def room(tmp_path):
    """A response of half a second whose direct sound comes after 37 samples, and its wav.scp."""
    wave = np.random.default_rng(2).standard_normal(RATE // 2) * np.exp(-np.arange(RATE // 2) / 1000)
    wave[:37] *= 0.01
    wave = (0.1 * wave).astype(np.float32)
    wave[37] = -0.9
    (tmp_path / "room").mkdir()
    return wave, scp(tmp_path / "room", room=wave)


def waves(conf, epochs=range(40), wave=WAVE, key="a"):
    opened = Augmenter(conf, 0, RATE)
    return [opened.draw(epoch, key).wave(wave) for epoch in epochs]


def decibels(wave, other):
    return 10 * np.log10(np.sum(np.square(wave, dtype=float)) / np.sum(np.square(other, dtype=float)))


def test_nothing_changes_by_default():
    augment = Augmenter(DatasetConf(), 0, RATE).draw(0, "a")
    assert augment.wave(WAVE) is WAVE and augment.mel(MEL) is MEL


def test_the_same_draw_for_the_same_seed_epoch_and_id(noise):
    conf = DatasetConf(spec_aug=MASKS, volume_perturb=[-9, 9], noise=NoiseConf(noise[1], prob=1))

    def drawn(seed, epoch, key):
        augment = Augmenter(conf, seed, RATE).draw(epoch, key)
        return augment.wave(WAVE), augment.mel(MEL)

    wave, mel = drawn(1, 2, "utt")
    for place in ((1, 2, "utt"), (2, 2, "utt"), (1, 3, "utt"), (1, 2, "utu")):
        same = place == (1, 2, "utt")
        assert np.array_equal(drawn(*place)[0], wave) == np.array_equal(drawn(*place)[1], mel) == same


def test_speed_moves_length_and_pitch_together():
    seen = {}
    for wave in waves(DatasetConf(speed_perturb=SPEEDS)):
        spectrum = np.abs(np.fft.rfft(wave, RATE * 4))
        seen[len(wave)] = spectrum.argmax() / 4  # hertz
    assert seen == pytest.approx({12800: 625, 16000: 500, 20000: 400}, abs=1)


def test_volume_spans_the_range_and_keeps_the_shape():
    made = waves(DatasetConf(volume_perturb=[-20, 6]), range(200))
    gains = [decibels(wave, WAVE) for wave in made]
    assert -20.01 < min(gains) < -19 and 5 < max(gains) < 6.01
    for wave, gain in zip(made, gains, strict=True):
        assert wave.dtype == np.float32 and np.allclose(wave, WAVE * 10 ** (gain / 20), atol=1e-5)


def test_over_full_scale_the_whole_is_made_quieter():
    for wave in waves(DatasetConf(volume_perturb=[20, 30])):
        assert np.allclose(wave, WAVE / WAVE.max(), atol=1e-5)  # not clipped: still a sine


def test_the_ratio_of_speech_to_noise_is_the_drawn_one(noise):
    conf = DatasetConf(noise=NoiseConf(noise[1], [3, 12], 1))
    made = waves(conf, range(200))
    ratios = [decibels(WAVE, wave - WAVE) for wave in made]
    assert 2.99 < min(ratios) < 3.5 and 11.5 < max(ratios) < 12.01
    assert 6.5 < np.mean(ratios) < 8.5  # uniform in dB
    assert all(wave.dtype == np.float32 for wave in made)


def test_the_noise_is_a_stretch_of_the_file_from_anywhere(noise):
    starts = []
    for wave in waves(DatasetConf(noise=NoiseConf(noise[1], [0, 0], 1))):
        added = wave - WAVE
        size = 1 << 16
        found = np.fft.irfft(np.fft.rfft(noise[0], size) * np.fft.rfft(added, size).conj())
        starts.append(int(found.argmax()))
        part = noise[0][starts[-1] : starts[-1] + RATE]
        assert np.allclose(added, part * np.linalg.norm(added) / np.linalg.norm(part), atol=1e-4)
    assert min(starts) < 4000 and max(starts) > 28000


def test_a_short_noise_goes_round(tmp_path):
    beep = 0.1 * np.random.default_rng(4).standard_normal(1000)
    made = waves(DatasetConf(noise=NoiseConf(scp(tmp_path, beep=beep), [0, 0], 1)), range(5))
    added = [wave - WAVE for wave in made]
    for one in added:
        assert np.allclose(one[1000:], one[:-1000], atol=1e-6) and np.abs(one).max() > 0.1
    assert not np.allclose(added[0], added[1], atol=1e-2)  # begins elsewhere


def test_silence_is_no_division_by_zero(tmp_path, room):
    quiet = NoiseConf(scp(tmp_path, quiet=np.zeros(48000)), prob=1)
    assert np.array_equal(waves(DatasetConf(noise=quiet), [0])[0], WAVE)
    conf = DatasetConf(noise=NoiseConf(room[1], prob=1), reverb=ReverbConf(room[1], 1))
    assert not waves(conf, [0], wave=np.zeros(5000, np.float32))[0].any()


def test_the_share_of_utterances_is_as_asked(noise):
    conf = DatasetConf(noise=NoiseConf(noise[1], prob=0.3))
    assert 0.2 < np.mean([wave is not WAVE for wave in waves(conf, range(300))]) < 0.4


def test_reverberation_is_a_convolution_from_the_direct_sound_on(room):
    speech = np.random.default_rng(5).standard_normal(9000).astype(np.float32) * 0.05
    (made,) = waves(DatasetConf(reverb=ReverbConf(room[1], 1)), [0], wave=speech)
    expected = np.convolve(speech.astype(float), room[0][37:].astype(float))[: len(speech)]
    expected *= np.linalg.norm(speech) / np.linalg.norm(expected)
    assert made.dtype == np.float32 and np.allclose(made, expected, atol=1e-5)
    assert decibels(made, speech) == pytest.approx(0, abs=1e-3)


def test_a_room_that_only_delays_changes_nothing(tmp_path):
    late = np.zeros(2000)
    late[700] = 0.5
    (made,) = waves(DatasetConf(reverb=ReverbConf(scp(tmp_path, late=late), 1)), [0])
    assert np.allclose(made, WAVE, atol=1e-5)


def test_a_kind_does_not_shift_the_draws_of_the_others(noise, room):
    loud, other = DatasetConf(volume_perturb=[-9, -1], spec_aug=MASKS), DatasetConf(noise=NoiseConf(noise[1], prob=0.5))
    both = DatasetConf(volume_perturb=[-9, -1], spec_aug=MASKS, noise=other.noise, reverb=ReverbConf(room[1], 0))
    for epoch in range(20):
        (gain,), (noisy,), (made,) = (waves(conf, [epoch]) for conf in (loud, other, both))
        assert np.allclose(made, noisy * 10 ** (decibels(gain, WAVE) / 20), atol=1e-5)
        masked = [Augmenter(conf, 0, RATE).draw(epoch, "a").mel(MEL) for conf in (loud, both)]
        assert np.array_equal(*masked)


def test_kinds_are_drawn_apart(noise, room):
    sound, wet = DatasetConf(noise=NoiseConf(noise[1])), DatasetConf(reverb=ReverbConf(room[1]))
    chosen = [[wave is not WAVE for wave in waves(conf, range(100))] for conf in (sound, wet)]
    assert 30 < np.not_equal(*chosen).sum() < 70


def test_the_noise_stands_outside_the_reverberation(noise, room):
    dry = DatasetConf(noise=NoiseConf(noise[1], [5, 5], 1))
    wet = DatasetConf(noise=dry.noise, reverb=ReverbConf(room[1], 1))
    (clean,), (noisy,), (made,) = (waves(conf, [3]) for conf in (DatasetConf(reverb=wet.reverb), dry, wet))
    assert np.allclose(made - clean, noisy - WAVE, atol=1e-4)


def test_masks_are_as_wide_as_allowed_and_take_the_mean():
    opened = Augmenter(DatasetConf(spec_aug=MASKS), 0, RATE)
    for epoch in range(50):
        masked = opened.draw(epoch, "a").mel(MEL)
        changed = masked != MEL
        rows, columns = changed.all(axis=1), changed.all(axis=0)
        assert rows.sum() <= 40 and columns.sum() <= 20
        assert np.array_equal(changed, rows[:, None] | columns[None, :])
        assert not changed.any() or np.allclose(masked[changed], MEL.mean(), atol=1e-6)


def test_workers_draw_what_the_main_process_draws(noise, room):
    conf = DatasetConf(
        speed_perturb=SPEEDS, volume_perturb=[-9, 9], noise=NoiseConf(noise[1]), reverb=ReverbConf(room[1])
    )
    opened = Augmenter(conf, 7, RATE)
    samples = [Sample(f"utt{i}", Clip(""), Prompt(), None, 0, 0, "") for i in range(12)]

    def example(sample, draw):
        return opened.draw(draw.epoch, sample.key).wave(WAVE)

    loaders = [
        DataLoader(Rows(samples, example), sampler=[Draw(i, 1) for i in range(12)], batch_size=None, num_workers=count)
        for count in (0, 2)
    ]
    alone, shared = ([np.asarray(wave) for wave in loader] for loader in loaders)
    assert all(map(np.array_equal, alone, shared)) and len({wave.tobytes() for wave in alone}) == 12


# What is refused before training.


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        (DatasetConf(time_warp=1.5), r"time_warp is 1.5; give 0 to 1"),
        (DatasetConf(speed_perturb=[1.0, 0.0]), r"speed_perturb is \[1.0, 0.0\]; give speeds above 0"),
        (DatasetConf(volume_perturb=[3.0]), r"volume_perturb is \[3.0\]; give \[lowest,highest\] in dB"),
        (DatasetConf(noise=NoiseConf(snr=[20.0, 5.0])), r"noise\.snr is \[20.0, 5.0\]; give \[lowest,highest\]"),
        (DatasetConf(noise=NoiseConf(prob=1.5)), r"noise\.prob is 1.5; give a share"),
        (DatasetConf(reverb=ReverbConf(prob=-0.5)), r"reverb\.prob is -0.5; give a share"),
        (DatasetConf(spec_aug=SpecAugConf(time_width=-1)), r"spec_aug\.time_width is -1; give 0 or more"),
        (DatasetConf(noise=NoiseConf("nowhere.scp")), r"nowhere\.scp: no such file"),
    ],
)
def test_wrong_numbers_are_named(conf, message):
    with pytest.raises(UserError, match=message):
        Augmenter(conf, 0, RATE)


@pytest.mark.parametrize("kind", ["noise", "reverb"])
def test_bad_recordings_are_named_by_line_before_training(tmp_path, kind):
    path = scp(tmp_path, good=np.ones(1000))
    conf = DatasetConf(**{kind: {"noise": NoiseConf, "reverb": ReverbConf}[kind](path)})
    with open(path, "a") as file:
        file.write("gone /nowhere/x.wav\n")
    with pytest.raises(UserError, match=r"wav\.scp:2: gone: /nowhere/x\.wav: no such file"):
        Augmenter(conf, 0, RATE)
    open(path, "w").close()
    with pytest.raises(UserError, match=r"wav\.scp: no recording in it"):
        Augmenter(conf, 0, RATE)


def test_recordings_that_turn_out_bad_are_named_by_line(tmp_path, noise):
    silent = DatasetConf(reverb=ReverbConf(scp(tmp_path, silent=np.zeros(1000)), 1))
    with pytest.raises(UserError, match=r"wav\.scp:1: silent: .*silent\.wav: silent; make it anew"):
        waves(silent, [0])
    opened = Augmenter(DatasetConf(noise=NoiseConf(scp(tmp_path, noise=noise[0]), prob=1)), 0, RATE)
    (tmp_path / "noise.wav").unlink()
    with pytest.raises(UserError, match=r"wav\.scp:1: noise: .*noise\.wav: no such file"):
        opened.draw(0, "a").wave(WAVE)
