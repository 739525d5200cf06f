"""Without a dev set a part of the training rows is held out: the same one everywhere, and never trained on."""

import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from tiny import make_corpus, make_model

from speechllm.errors import UserError
from speechllm.formats.jsonl import JsonlFile

ROOT = Path(__file__).resolve().parents[1]
ROW = (
    '{"messages": [{"role": "system", "content": ""}, {"role": "user", "content": "<|startofspeech|>!%(key)s.wav'
    '<|endofspeech|>"}, {"role": "assistant", "content": "a"}], "speech_length": %(length)d, "text_length": 1, '
    '"key": "%(key)s"}\n'
)


def write(path, numbers):
    rows = (ROW % {"key": f"S01W{number:06d}", "length": 100 + number} for number in numbers)
    path.write_text("".join(rows))
    return path


def keys(data):
    return [sample.key for sample in data]


@pytest.mark.parametrize("rows,held", [(2, 1), (29, 1), (100, 5), (3999, 200), (9000, 200)])
def test_a_twentieth_is_held_out_between_1_and_200(tmp_path, rows, held):
    data = JsonlFile(write(tmp_path / "rows.jsonl", range(rows)))
    train, dev = data.hold_out()
    assert (len(train), len(dev)) == (rows - held, held)
    assert sorted(keys(train) + keys(dev)) == keys(data)


def test_the_ids_decide_whatever_their_order_and_file(tmp_path):
    _, dev = JsonlFile(write(tmp_path / "rows.jsonl", range(300))).hold_out()
    write(tmp_path / "a.jsonl", range(299, 180, -1))
    write(tmp_path / "b.jsonl", range(0, 1))
    write(tmp_path / "c.jsonl", range(1, 181))
    (tmp_path / "all.list").write_text("a.jsonl\nb.jsonl\nc.jsonl\n")
    train, same = JsonlFile(tmp_path / "all.list").hold_out()
    assert sorted(keys(same)) == keys(dev) and len(train) == 285
    for part in (train, same):  # each row is the one of its id, at its place in its file
        assert part.speech_lengths.tolist() == [sample.speech_length for sample in part]
        assert all(sample.speech_length == 100 + int(sample.key[-6:]) for sample in part)
        assert part.sizes.tolist() == [length + 1 for length in part.speech_lengths]
        assert [part[-1].key, part[0].key] == [keys(part)[-1], keys(part)[0]]
    assert {Path(sample.where.rsplit(":", 1)[0]).name for sample in train} == {"a.jsonl", "b.jsonl", "c.jsonl"}
    numbers = sorted(int(key[-6:]) for key in keys(dev))
    assert numbers[0] < 100 and numbers[-1] >= 200 and numbers != list(range(numbers[0], numbers[-1] + 1))


def test_one_row_alone_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"rows\.jsonl: one row, and none to hold out; add rows, or set valid_data_set_"
    ):
        JsonlFile(write(tmp_path / "rows.jsonl", [0])).hold_out()


def test_the_parts_hold_no_object_per_row(tmp_path):
    rows = 30_000
    path = write(tmp_path / "rows.jsonl", range(rows))
    tracemalloc.start()
    try:
        parts = JsonlFile(path).hold_out()
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(map(len, parts)) == rows and now / rows < 30 and peak / rows < 80  # a list of ids alone takes 80


def run(home):
    words = [
        f"++model={home}/model",
        f"++train_data_set_list={home}/train/rows.jsonl",
        f"++output_dir={home}/run",
        "++train_conf.max_epoch=2",
        "++dataset_conf.batch_size=800",
        "++dataset_conf.num_workers=1",
        "++max_new_tokens=4",
    ]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONHASHSEED": "random"}
    command = [*launch, str(ROOT / "tools" / "train.py"), *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)


def losses(folder):
    rows = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]


def test_all_ranks_and_a_resumed_run_hold_out_the_same(tmp_path):
    make_model(tmp_path / "model")
    make_corpus(tmp_path / "train", 41)
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "run"
    log = (out / "train.log").read_text()
    assert "valid_data_set_list is not set: 2 of the 41 rows" in log and log.count("dev at step") == 2
    assert "train: 39 utterances" in log and "dev: 2 utterances" in log
    assert json.loads((out / "resume.json").read_text())["rows"] == 39
    first, last = sorted(out.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert json.loads((last / "score.json").read_text())["counts"]["utterances"] == 2
    straight = losses(last)
    shutil.rmtree(last)
    done = run(tmp_path)
    assert done.returncode == 0 and f"going on from {first}" in done.stderr, done.stderr
    assert losses(last) == straight
