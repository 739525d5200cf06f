"""A million rows: what stays in memory per row, and how long opening takes, measured on fewer."""

import time
import tracemalloc

import numpy as np
import pytest

from speechllm.batching import StepSampler
from speechllm.formats.jsonl import JsonlFile

ROWS = 30_000
# The form and size of rows from tools/scp2jsonl.py.
ROW = (
    '{"messages": [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": '
    '"语音转写：<|startofspeech|>!/data/corpora/aishell/wav/train/S0002/%(key)s.wav<|endofspeech|>"}, {"role": '
    '"assistant", "content": "今天天气很好我们去公园散步吧然后回家吃饭"}], "speech_length": %(length)d, '
    '"text_length": 14, "key": "%(key)s"}\n'
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("scale") / "rows.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(ROW % {"key": f"S0002W{i:07d}", "length": 100 + i * 7919 % 1400} for i in range(ROWS))
    return path


def kept(make):
    """What ``make`` returns, and the bytes that stay with it and that it takes at most, per row."""
    tracemalloc.start()
    try:
        made = make()
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return made, now / ROWS, peak / ROWS


def test_an_open_file_holds_no_object_per_row(path):
    data, now, peak = kept(lambda: JsonlFile(path))
    assert len(data) == ROWS and data[ROWS - 1].key == f"S0002W{ROWS - 1:07d}"
    assert now < 30 and peak < 80  # a list of ids alone takes 80


def test_a_million_rows_open_within_half_a_minute(path):
    seconds = []
    for _ in range(2):  # the machine may be busy: processor time, and the better of two
        started = time.process_time()
        JsonlFile(path)
        seconds.append(time.process_time() - started)
    assert min(seconds) * 1_000_000 / ROWS < 30


def test_the_sampler_deals_a_million_rows_in_seconds():
    lengths = np.random.default_rng(0).integers(100, 1500, ROWS)
    sampler, now, _ = kept(lambda: StepSampler(lengths, 6000, "token"))
    assert now < 30
    started = time.process_time()
    sampler = StepSampler(lengths, 6000, "token")
    assert sum(len(draws) for draws in sampler) == ROWS and sampler.largest()
    assert (time.process_time() - started) * 1_000_000 / ROWS < 10
