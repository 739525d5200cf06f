"""Make the mini corpus: commands spoken by espeak-ng, as Kaldi folders, with the times of words and phonemes.

Sets: train, dev and test (English, no voice in two of them), train_zh and test_zh (Mandarin), test_mix (Mandarin with
English words, digits and punctuation). Each folder holds wav.scp, text, utt2spk (the speaker is the voice), words.ctm,
phones.ctm (`utt 1 start duration label`, seconds; pauses are `sil`) and text-phone. The same seed gives the same
bytes, whatever the number of workers; the quick corpus is the first part of the full one.
"""

from __future__ import annotations

import math
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[4]), str(Path(__file__).resolve().parents[2] / "local")]
from espeak import PAUSE, Espeak, Span, Speech, in_fresh_processes  # noqa: E402

from speechllm import cli  # noqa: E402
from speechllm.formats.corpus import move_wavs, publish, write_wav  # noqa: E402

RATE = 16000
SLOT = re.compile(r"\{(\w+)\}")
SHARD = 100  # utterances per process; another number gives other samples

SLOTS = {
    "switch": "on off",
    "room": "kitchen bedroom bathroom garage garden office",
    "device": "light heater fan radio camera",
    "clock": "timer alarm",
    "number": "two three four five six seven eight nine ten twelve twenty thirty",
    "unit": "seconds minutes hours",
    "day": "today tomorrow monday tuesday friday sunday",
    "part": "morning evening",
    "kind": "jazz rock folk piano dance",
    "who": "doctor uncle sister",
    "name": "brown peter mary smith anna",
    "city": "london paris berlin madrid",
    "item": "apples eggs lemons carrots",
    "act": "open close lock",
    "entry": "door window",
}
ENGLISH = (
    "turn {switch} the {room} {device}",
    "turn {switch} the {room} {device} at {number}",
    "turn {switch} the {room} {device} {day} {part}",
    "turn {switch} the {device} for {number} {unit}",
    "set the {clock} for {number} {unit}",
    "set a {clock} {day} {part} at {number}",
    "wake me at {number} {day} {part}",
    "wake {who} {name} at {number} {day} {part}",
    "play {kind} music for {number} {unit}",
    "play {number} {kind} songs in the {room}",
    "please play {kind} music {day} at {number}",
    "call {name}",
    "call {who} {name} in {city} {day} {part}",
    "please call {who} {name} {day} at {number}",
    "{act} the {room} {entry} at {number}",
    "please {act} the {entry} in {number} {unit}",
    "weather in {city} {day} {part}",
    "add {number} {item} to my {day} list",
    "buy {number} {item} and {number} {item}",
)
SLOTS_ZH = {
    "开关": "打开 关闭",
    "房间": "厨房 卧室 客厅 书房",
    "电器": "灯 电视 风扇 窗帘",
    "数": "两 三 四 五 六 七 八 九 十 十二",
    "单位": "分钟 小时",
    "天": "今天 明天 后天",
    "段": "早上 下午 晚上",
    "城市": "北京 上海 广州 成都",
    "人": "妈妈 爸爸 王老师 周医生",
    "东西": "牛奶 面包 鸡蛋 苹果",
    "digits": "3 5 8 12 25 30 48",
    "hour": "2 3 8 10 12",
    "degrees": "18 20.5 22.5 26",
    "artist": "Taylor Swift|Michael Jackson|Bob Dylan",
    "app": "Google YouTube Facebook",
    "person": "Tom Peter Anna",
}
MANDARIN = (
    "{开关}{房间}的{电器}",
    "{天}{段}{数}点叫我起床",
    "{天}{段}{数}点叫{人}起床",
    "{天}{城市}的天气怎么样",
    "设置{数}{单位}的闹钟",
    "给{人}打电话",
    "{天}{段}提醒我买{东西}",
    "{天}{段}提醒{人}买{东西}",
    "请在{数}{单位}后{开关}{房间}的{电器}",
)
MIXED = (
    "请播放 {digits} 首 {artist} 的歌！",
    "把温度设到 {degrees} 度，谢谢。",
    "用 {app} 搜索{城市}的天气。",
    "{天}{段} {hour} 点有 meeting，提醒我。",
    "给 {person} 发 email，OK？",
    "{开关} WiFi，{digits} 分钟后再{开关} Bluetooth。",
)


class Set(NamedTuple):
    voices: str
    templates: tuple[str, ...]
    slots: dict[str, str]
    full: int
    """Utterances."""
    quick: int


SETS = {
    "train": Set(
        "en-us+f1 en-us+f4 en-us+m1 en-us+m3 en-us+m7 en+f2 en+f4 en+m4 en+m5 "
        "en-gb-x-rp+f1 en-gb-x-rp+m3 en-gb-x-rp+m7",
        ENGLISH,
        SLOTS,
        2400,
        300,
    ),
    "dev": Set("en-us+f5 en-us+m6 en+m6 en-gb-x-rp+f5", ENGLISH, SLOTS, 200, 40),
    "test": Set("en-us+f3 en-us+m2 en+f3 en+m8 en-gb-x-rp+m2", ENGLISH, SLOTS, 400, 60),
    "train_zh": Set("cmn+f1 cmn+f2 cmn+f4 cmn+m1 cmn+m3 cmn+m7", MANDARIN, SLOTS_ZH, 300, 30),
    "test_zh": Set("cmn+f3 cmn+m2 cmn+m8", MANDARIN, SLOTS_ZH, 60, 20),
    "test_mix": Set("cmn+f3 cmn+m2 cmn+m8", MIXED, SLOTS_ZH, 40, 20),
}


@dataclass
class Options:
    output_dir: str = "data"
    """Folder of the sets; wav.scp holds paths as given here, so a relative folder can be moved with the recipe."""
    size: Literal["full", "quick"] = "full"
    """quick: the first few hundred utterances, for tests."""
    train_zh: int = 0
    """Utterances of train_zh; 0: as the size has it."""
    nproc: int = 2
    """Worker processes."""
    seed: int = 0


class Utterance(NamedTuple):
    set: str
    key: str
    text: str
    voice: str


class Spoken(NamedTuple):
    utterance: Utterance
    words: list[Span]
    phones: list[Span]


def draws(seed: int, key: str, purpose: str) -> np.random.Generator:
    """Random numbers of one utterance, the same in every process and for every size of the corpus."""
    return np.random.default_rng([seed, *key.encode(), *purpose.encode()])


def plan(name: str, count: int, seed: int) -> list[Utterance]:
    """What is said by which voice; the voices take turns."""
    content = SETS[name]
    voices = content.voices.split()
    utterances = []
    for index in range(count):
        voice = voices[index % len(voices)]
        key = f"{voice}-{name}-{index:04d}"
        utterances.append(Utterance(name, key, phrase(content, draws(seed, key, "text")), voice))
    return utterances


def phrase(content: Set, rng: np.random.Generator) -> str:
    """One of the phrases; the more of them a template has, the more often it is taken, so that few come twice."""
    slots = {name: words.split("|" if "|" in words else None) for name, words in content.slots.items()}
    fills = [[slots[name] for name in SLOT.findall(template)] for template in content.templates]
    weights = np.sqrt([math.prod(map(len, fill)) for fill in fills])
    chosen = rng.choice(len(fills), p=weights / weights.sum())
    words = [choices[rng.integers(len(choices))] for choices in fills[chosen]]
    return SLOT.sub("{}", content.templates[chosen]).format(*words)


def speak(shard: tuple[Path, int, list[Utterance]]) -> list[Spoken]:
    """Write the wavs of one shard to `<folder>/<set>/`; runs in a process of its own."""
    folder, seed, utterances = shard
    espeak, spoken = Espeak(), []
    for utterance in utterances:
        rng = draws(seed, utterance.key, "sound")
        speech = espeak.say(utterance.text, utterance.voice, int(rng.integers(140, 201)), int(rng.integers(35, 66)))
        samples, shift = record(speech, rng)
        write_wav(folder / utterance.set / f"{utterance.key}.wav", samples, RATE)
        words = [Span(word, start + shift, end + shift) for word, start, end in speech.words]
        spoken.append(Spoken(utterance, words, pad(speech.phones, shift, len(samples) / RATE)))
    return spoken


def record(speech: Speech, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """The speech at 16 kHz with silence around it, a level and a noise of its own.

    Returns:
        (N,) whole numbers in the range of int16, and the seconds by which the speech starts later.
    """
    import soxr

    head, tail = rng.integers(RATE // 20, RATE // 4, size=2)
    clean = soxr.resample(speech.samples.astype(np.float32) / 32768, speech.rate, RATE)
    clean *= rng.uniform(0.2, 0.7) / np.abs(clean).max()
    level = np.sqrt(np.mean(clean**2)) * 10 ** (-rng.uniform(15, 40) / 20)
    mixed = np.pad(clean, (head, tail)) + level * noise(head + len(clean) + tail, rng)
    return np.round(mixed.clip(-1, 1) * 32767), head / RATE


def noise(count: int, rng: np.random.Generator) -> np.ndarray:
    """(count,) of unit power, from white to falling by 6 dB per octave."""
    colour = rng.uniform(0, 0.9) ** np.arange(32)
    wave = np.convolve(rng.standard_normal(count), colour, mode="same")
    return wave / np.sqrt(np.mean(wave**2))


def pad(phones: list[Span], shift: float, total: float) -> list[Span]:
    """The phonemes later by ``shift`` seconds, with the silence before and after them."""
    moved = [Span(label, start + shift, end + shift) for label, start, end in phones]
    inner = moved[moved[0].label == PAUSE : len(moved) - (moved[-1].label == PAUSE)]
    return [Span(PAUSE, 0.0, inner[0].start), *inner, Span(PAUSE, inner[-1].end, total)]


def publish_set(output: Path, partial: Path, name: str, spoken: list[Spoken]) -> None:
    wavs = move_wavs(output, partial, name)
    phones = {one.utterance.key: one.phones for one in spoken}
    tables = {
        "text": {one.utterance.key: one.utterance.text for one in spoken},
        "text-phone": {key: " ".join(label for label, *_ in spans if label != PAUSE) for key, spans in phones.items()},
        "utt2spk": {one.utterance.key: one.utterance.voice for one in spoken},
        "wav.scp": {one.utterance.key: str(wavs / f"{one.utterance.key}.wav") for one in spoken},
    }
    words = {one.utterance.key: one.words for one in spoken}
    publish(output / name, tables, {"words.ctm": words, "phones.ctm": phones})


def main(options: Options) -> None:
    from tqdm import tqdm

    output = Path(options.output_dir)
    partial = output / "wavs.partial"
    shutil.rmtree(partial, ignore_errors=True)
    counts = {name: getattr(content, options.size) for name, content in SETS.items()}
    counts["train_zh"] = options.train_zh or counts["train_zh"]
    plans = {name: plan(name, count, options.seed) for name, count in counts.items()}
    shards = [
        (partial, options.seed, utterances[start : start + SHARD])
        for utterances in plans.values()
        for start in range(0, len(utterances), SHARD)
    ]
    spoken: dict[str, list[Spoken]] = {name: [] for name in SETS}
    for name in SETS:
        (partial / name).mkdir(parents=True)
    with tqdm(total=sum(map(len, plans.values())), desc="speak", unit="utt") as bar:
        for shard in in_fresh_processes(speak, shards, options.nproc):
            spoken[shard[0].utterance.set] += shard
            bar.update(len(shard))
    for name in SETS:
        publish_set(output, partial / name, name, spoken[name])
    partial.rmdir()


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
