"""Long audio: cut at quiet points or by FSMN-VAD, decoded among the rest, joined in order with its times."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from tiny import make_model

from speechllm import audio, checkpoint
from speechllm.batching import Rows
from speechllm.config import DecodeOptions
from speechllm.decode import decode_set
from speechllm.errors import UserError
from speechllm.formats.kaldi import samples
from speechllm.sample import Clip
from speechllm.segments import BLOCK, RATE, QuietPoints, Vad, cut, join_texts

LONGEST = 3.0  # seconds, in place of 30
LOUD = [(0.5, 2.4), (3.1, 4.4), (6.0, 8.6), (9.5, 10.0)]  # of a recording of 11 s: noise in silence


def noise(seconds, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * RATE)).astype(np.float32)


def recording(path, loud=tuple(LOUD), seconds=11.0):
    wave = np.zeros(round(seconds * RATE), np.float32)
    for start, end in loud:
        wave[round(start * RATE) : round(end * RATE)] = noise(end - start)
    soundfile.write(path, wave, RATE)
    return str(path)


def quiet(wave, longest=LONGEST):
    return QuietPoints(longest)([wave])


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    return checkpoint.open_model(str(make_model(tmp_path_factory.mktemp("model"), spread=0.3)))


@pytest.fixture(scope="module")
def vad_model(tmp_path_factory):
    """A checkpoint of funasr's FSMN-VAD, by hand: the mean of the log-mel frames over a threshold is speech."""
    import torch
    from funasr.models.fsmn_vad_streaming.encoder import FSMN

    folder = tmp_path_factory.mktemp("vad")
    sizes = {"input_dim": 400, "input_affine_dim": 1, "fsmn_layers": 1, "linear_dim": 1, "proj_dim": 1}
    sizes |= {"lorder": 20, "rorder": 0, "lstride": 1, "rstride": 0, "output_affine_dim": 1, "output_dim": 2}
    front = {"fs": RATE, "window": "hamming", "n_mels": 80, "frame_length": 25, "frame_shift": 10}
    config = {"frontend": "WavFrontendOnline", "frontend_conf": front | {"dither": 0.0, "lfr_m": 5, "lfr_n": 1}}
    config |= {"model": "FsmnVADStreaming", "encoder": "FSMN", "encoder_conf": sizes}
    config |= {"model_conf": {"sample_rate": RATE, "detect_mode": 1, "max_end_silence_time": 800}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    net = FSMN(**sizes)
    state = {name: torch.zeros_like(tensor) for name, tensor in net.state_dict().items()}
    state["in_linear1.linear.weight"] += 1 / 400
    state["in_linear2.linear.bias"] -= 5.0
    for name in ("in_linear2", "out_linear1", "fsmn.0.linear", "fsmn.0.affine"):
        state[f"{name}.linear.weight"] += 1.0
    state["out_linear2.linear.weight"] += torch.tensor([[0.0], [1.0]])  # silence (the first), speech
    state["out_linear2.linear.bias"] += torch.tensor([2.0, 0.0])
    torch.save({f"encoder.{name}": tensor for name, tensor in state.items()}, folder / "model.pt")
    rows = (
        f"<{tag}> 400 400\n<LearnRateCoef> 0 [ {' '.join([value] * 400)} ]\n"
        for tag, value in (("AddShift", "0"), ("Rescale", "1"))
    )
    (folder / "am.mvn").write_text("<Nnet>\n" + "".join(rows) + "</Nnet>\n")
    return str(folder)


# Where it is cut


@pytest.mark.parametrize("seconds", [3.01, 3.02, 5.9, 6.0, 6.01, 60.0, 60.005])
def test_pieces_hold_all_and_none_is_too_long_or_tiny(tmp_path, seconds):
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(seconds), RATE)
    clips = cut(Clip(str(path)), QuietPoints(LONGEST), str(tmp_path))
    waves = [audio.read(clip) for clip in clips]
    assert (np.concatenate(waves) == audio.read(Clip(str(path)))).all()
    lengths = [len(wave) / RATE for wave in waves]
    assert max(lengths) <= LONGEST and min(lengths) >= LONGEST / 4 - 0.01


def test_cuts_lie_in_the_pauses():
    wave = np.zeros(11 * RATE, np.float32)
    for start, end in LOUD:
        wave[int(start * RATE) : int(end * RATE)] = noise(end - start)
    inner = [end for _, end in quiet(wave)[:-1]]
    assert len(inner) == 3 and all(not any(start < cut < end for start, end in LOUD) for cut in inner)


def test_of_equally_quiet_points_the_last_is_cut_at():
    assert quiet(np.zeros(7 * RATE, np.float32)) == [(0, 3), (3, 6), (6, np.inf)]
    spans = quiet(np.zeros(round(6.5 * RATE), np.float32))
    assert spans[0] == (0, 3) and spans[1][1] == pytest.approx(6.5 - LONGEST / 4, abs=0.011)


def test_a_clip_of_another_rate_is_cut_within_its_bounds(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, (44100 * 12, 2)), 44100)
    clips = cut(Clip(str(path), 2.5, 10.25), QuietPoints(LONGEST), str(tmp_path))
    assert clips[0].start == 2.5 and clips[-1].end == 10.25 and len(clips) >= 3
    assert [clip.end for clip in clips[:-1]] == [clip.start for clip in clips[1:]]
    assert sum(len(audio.read(clip, 44100)) for clip in clips) == round(7.75 * 44100)


def test_a_long_recording_is_read_in_blocks(tmp_path, monkeypatch):
    asked, read = [], audio.read
    monkeypatch.setattr(audio, "read", lambda clip, *more: asked.append(clip) or read(clip, *more))
    soundfile.write(tmp_path / "a.wav", np.zeros(round(3.2 * BLOCK * 8000), np.int16), 8000)
    clips = cut(Clip(str(tmp_path / "a.wav")), QuietPoints(30), str(tmp_path))
    assert [clip.start for clip in asked] == [0, BLOCK, 2 * BLOCK, 3 * BLOCK]
    assert asked[-1].end == pytest.approx(3.2 * BLOCK)
    assert len(clips) == 7 and clips[-1].end == pytest.approx(3.2 * BLOCK)


def test_a_pipe_runs_once_for_all_its_pieces(tmp_path):
    path, runs = recording(tmp_path / "a.wav"), tmp_path / "runs"
    clips = cut(Clip(f"echo >> {runs}; cat {path} |"), QuietPoints(LONGEST), str(tmp_path / "copies"), True)
    wave = np.concatenate([audio.read(clip) for clip in clips])
    assert (wave == audio.read(Clip(path))).all() and runs.read_text() == "\n"
    again = cut(Clip(f"echo >> {runs}; cat {path} |"), QuietPoints(LONGEST), str(tmp_path / "copies"), True)
    assert again == clips and runs.read_text() == "\n"


# How the texts become one


@pytest.mark.parametrize(
    ("texts", "joined"),
    [
        (["今天 天气", "很好"], "今天 天气很好"),
        (["今天，", "很好。", "是的"], "今天，很好。是的"),
        (["こんにちは", "カー", "世界"], "こんにちはカー世界"),
        (["hello", "world."], "hello world."),
        (["我用", "Python", "编程"], "我用 Python 编程"),
        (["안녕", "하세요"], "안녕 하세요"),
        (["", " a ", "", "b", "  "], "a b"),
        ([], ""),
    ],
)
def test_a_blank_stands_between_texts_but_within_chinese_and_japanese(texts, joined):
    assert join_texts(texts) == joined


# VAD


def test_vad_hears_the_speech_and_what_funasr_hears_in_the_whole_file(vad_model):
    wave = np.zeros(200 * RATE, np.float32)
    loud = [(3.0, 8.0), (57.0, 64.0), (110.0, 139.0), (179.5, 185.0)]
    for start, end in loud:
        wave[int(start * RATE) : int(end * RATE)] = noise(end - start)
    vad = Vad(vad_model, "ms", 30.0)
    blocks = [wave[: 60 * RATE], wave[60 * RATE : 120 * RATE], wave[120 * RATE :]]
    found = vad(blocks)
    whole = vad.model.generate(input=wave)[0]["value"]  # funasr's own way, which holds the recording in memory
    assert found == [(start / 1000, end / 1000) for start, end in whole]
    assert len(found) == len(loud)
    for (start, end), (begin, stop) in zip(found, loud, strict=True):
        assert begin - 0.5 <= start <= begin and stop <= end <= stop + 1.0


@pytest.mark.parametrize("seconds", [60, 120])
def test_vad_obeys_the_longest_piece_also_at_the_ends_of_blocks(vad_model, tmp_path, seconds):
    soundfile.write(tmp_path / "a.wav", noise(seconds), RATE)
    clips = cut(Clip(str(tmp_path / "a.wav")), Vad(vad_model, "ms", 10.0), str(tmp_path))
    lengths = [clip.end - clip.start for clip in clips]
    assert lengths[0] > 9 and max(lengths) <= 10.0 and sum(lengths) > seconds - 1 and clips[-1].end <= seconds


def test_what_is_no_vad_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"nothing: no such folder.*leave \+\+vad_model out"):
        Vad(str(tmp_path / "nothing"), "ms", 30.0)
    with pytest.raises(UserError, match=r"vad_model .*: funasr does not load it as a VAD"):
        Vad(str(tmp_path), "ms", 30.0)


# Decoding


@pytest.fixture
def corpus(tmp_path):
    """wav.scp of three short utterances with two long ones between them."""
    rows = [f"long1 {recording(tmp_path / 'long1.wav')}\n"]
    rows += [f"long2 {recording(tmp_path / 'long2.wav', [(0.2, 3.9), (4.4, 4.9)], 5.0)}\n"]
    for i in range(3):
        rows.append(f"short{i} {recording(tmp_path / f'short{i}.wav', [(0, 0.4)], 0.5 + i / 3)}\n")
    (tmp_path / "wav.scp").write_text("".join(rows[i] for i in (2, 0, 3, 1, 4)))
    return tmp_path / "wav.scp"


def decode(opened, scp, output, segments=None, allow_pipes=False, **other):
    data = samples(scp, segments, opened.prompt, allow_pipes)
    options = {"max_new_tokens": 8, "num_workers": 0, "max_segment": LONGEST, "allow_pipes": allow_pipes} | other
    faults = decode_set(opened, data, [s.speech_length for s in data], DecodeOptions(**options), str(output))
    rows = [json.loads(line) for line in Path(output).with_suffix(".jsonl").read_text().splitlines()]
    told = json.loads((Path(output).parent / "decode.json").read_text())
    return {row["key"]: row for row in rows}, told, faults


def test_pieces_are_decoded_as_if_cut_by_hand(opened, corpus, tmp_path):
    """The texts of the same stretches, given to the decoder by Kaldi's segments file."""
    rows, told, _ = decode(opened, corpus, tmp_path / "a" / "hyp.txt")
    assert list(rows) == ["short0", "long1", "short1", "long2", "short2"]
    assert [line.split("\t")[0] for line in (tmp_path / "a" / "hyp.txt").read_text().splitlines()] == list(rows)
    by_hand = tmp_path / "segments"
    with by_hand.open("w") as file:
        for key in ("long1", "long2"):
            for i, piece in enumerate(rows[key]["segments"]):
                file.write(f"{key}-{i} {key} {piece['start']} {piece['end']}\n")
    pieces, _, _ = decode(opened, corpus, tmp_path / "b" / "hyp.txt", by_hand)
    assert len({row["text"] for row in pieces.values()}) > 1  # the model hears a difference
    for key in ("long1", "long2"):
        texts = [row["text"] for name, row in pieces.items() if name.startswith(key)]
        assert [piece["text"] for piece in rows[key]["segments"]] == texts
        assert rows[key]["text"] == join_texts(texts)
    assert rows["long1"]["segments"][0]["start"] == 0 and rows["long1"]["segments"][-1]["end"] == 11.0
    assert "segments" not in rows["short0"]
    assert (told["utterances"], told["in_pieces"], told["pieces"]) == (5, 2, len(pieces))
    assert told["audio_seconds"] == pytest.approx(11 + 5 + 0.5 * 3 + 1, abs=0.3)


@pytest.mark.parametrize("other", [{"batch_size": 1}, {"num_workers": 2}])
def test_the_same_text_one_by_one_and_with_workers(opened, corpus, tmp_path, other):
    rows, _, _ = decode(opened, corpus, tmp_path / "a" / "hyp.txt")
    assert decode(opened, corpus, tmp_path / "b" / "hyp.txt", **other)[0] == rows


def test_a_killed_decoding_of_long_audio_goes_on(opened, corpus, tmp_path, monkeypatch):
    whole, _, _ = decode(opened, corpus, tmp_path / "whole" / "hyp.txt")
    predict, calls = opened.task.predict, []

    def dies_at_the_third(*words):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return predict(*words)

    monkeypatch.setattr(opened.task, "predict", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        decode(opened, corpus, tmp_path / "a" / "hyp.txt", batch_size=300)
    done = len((tmp_path / "a" / "hyp.part").read_text().splitlines()) - 1
    seen = []
    monkeypatch.setattr(
        opened.task, "predict", lambda *words: seen.append(len(words[2]["input_ids"])) or predict(*words)
    )
    rows, told, _ = decode(opened, corpus, tmp_path / "a" / "hyp.txt", batch_size=300)
    assert rows == whole and done > 0 and sum(seen) == 3 + told["pieces"] - done


def test_a_part_with_other_pieces_is_not_gone_on_from(opened, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("speechllm.decode._write", lambda *words: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):  # all is decoded, and nothing written
        decode(opened, corpus, tmp_path / "a" / "hyp.txt", max_segment=4.0)
    monkeypatch.undo()
    rows, _, _ = decode(opened, corpus, tmp_path / "a" / "hyp.txt")
    assert rows == decode(opened, corpus, tmp_path / "b" / "hyp.txt")[0]


def test_pipes_are_copied_for_the_time_of_decoding(opened, corpus, tmp_path):
    scp = tmp_path / "pipes.scp"
    scp.write_text("".join(f"{key} cat {path} |\n" for key, path in map(str.split, corpus.read_text().splitlines())))
    rows, _, _ = decode(opened, scp, tmp_path / "a" / "hyp.txt", allow_pipes=True)
    assert rows == decode(opened, corpus, tmp_path / "b" / "hyp.txt")[0]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["decode.json", "hyp.jsonl", "hyp.txt"]


def test_vad_leaves_the_number_of_threads_alone(vad_model):
    """funasr sets its own; in a forked worker more than one would wait for ever for threads that the parent has."""
    import torch

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        Vad(vad_model, "ms", 30.0)([noise(2)])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_vad_pieces_are_decoded_and_silence_has_no_text(opened, corpus, vad_model, tmp_path, caplog):
    recording(tmp_path / "long2.wav", [], 5.0)
    rows, told, faults = decode(opened, corpus, tmp_path / "hyp.txt", vad_model=vad_model, num_workers=2)
    assert rows["long2"] == {"key": "long2", "text": "", "truncated": False, "segments": []}
    assert "long2\t\n" in (tmp_path / "hyp.txt").read_text()
    assert told["no_speech"] == 1 and told["errors"] == 0 and not faults
    assert "1 recording(s) without speech" in caplog.text
    assert rows["long1"]["segments"][0]["start"] <= 0.5 and rows["long1"]["text"]
    assert told["audio_seconds"] < 14  # of 18.5


def test_a_fault_within_long_audio_is_told_and_its_text_is_empty(opened, corpus, tmp_path):
    wave = noise(11)
    wave[10 * RATE] = np.nan
    soundfile.write(tmp_path / "long1.wav", wave, RATE, subtype="FLOAT")
    rows, told, faults = decode(opened, corpus, tmp_path / "hyp.txt")
    assert rows["long1"]["text"] == "" and "NaN" in rows["long1"]["error"] and told["errors"] == 1
    assert [(fault.sample.key, fault.reason) for fault in faults] == [("long1", rows["long1"]["error"])]
    assert rows["long2"]["text"]


def test_where_vad_fails_the_others_are_decoded(opened, corpus, vad_model, tmp_path, monkeypatch):
    from funasr.models.fsmn_vad_streaming.model import FsmnVADStreaming

    inference = FsmnVADStreaming.inference

    def fails_on_long(self, data_in, *words, **more):
        if len(data_in[0]) > 10 * RATE:
            raise ValueError("math domain error")
        return inference(self, data_in, *words, **more)

    monkeypatch.setattr(FsmnVADStreaming, "inference", fails_on_long)
    rows, told, faults = decode(opened, corpus, tmp_path / "hyp.txt", vad_model=vad_model)
    assert "math domain error" in rows["long1"]["error"] and rows["long2"]["text"]
    assert told["errors"] == 1 and [fault.sample.key for fault in faults] == ["long1"]


def test_a_piece_that_fails_fails_its_utterance(opened, corpus, tmp_path, monkeypatch):
    get = Rows.__getitem__

    def fails_late(self, draw):
        row = get(self, draw)
        late = self.samples[draw.index].clip.start > 8
        if late and isinstance(row, dict):
            raise_reason = self.example
            self.example = lambda *words: (_ for _ in ()).throw(UserError("the disk went away"))
            row = get(self, draw)
            self.example = raise_reason
        return row

    monkeypatch.setattr(Rows, "__getitem__", fails_late)
    rows, told, faults = decode(opened, corpus, tmp_path / "hyp.txt")
    assert rows["long1"] == {"key": "long1", "error": "the disk went away", "text": ""}
    assert told["errors"] == 1 and [fault.sample.key for fault in faults] == ["long1"] and rows["long2"]["text"]


@pytest.mark.parametrize("seconds", [0.5, float("inf"), float("nan")])
def test_a_longest_piece_that_cannot_be_is_refused(opened, corpus, tmp_path, seconds):
    with pytest.raises(UserError, match=rf"max_segment is {seconds} s; give 1 to 86400"):
        decode(opened, corpus, tmp_path / "hyp.txt", max_segment=seconds)
