"""Runs of whisper_qwen3 as a user types them: LoRA, new rows and CTC over ranks, phonemes beside text, one file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from composite import PROMPT, make_composite
from tiny import WORDS, make_corpus

ROOT = Path(__file__).resolve().parents[1]
SYMBOLS = dict(zip(WORDS, ("w V n", "t u:", "T r i:", "f O:", "f aI v", "s I k s"), strict=True))
LORA = ["++llm_conf.use_lora=true", "++llm_conf.lora_conf.lora_dropout=0", "++audio_encoder_conf.freeze=true"]


def phonemes(folder, count, seed, answer=lambda said, i: said):
    """The tones of tests/tiny.py with phonemes for their words."""
    rows = [json.loads(line) for line in make_corpus(folder, count, seed).read_text("utf-8").splitlines()]
    for i, row in enumerate(rows):
        said = " ".join(SYMBOLS[word] for word in row["messages"][-1]["content"].split())
        path = row["messages"][1]["content"].split("!")[1].split("<")[0]
        row["messages"][1]["content"] = f"<|startofspeech|>!{path}<|endofspeech|>{PROMPT.after}"
        row["messages"][-1]["content"] = answer(said, i)
    jsonl = folder / "phones.jsonl"
    jsonl.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return jsonl


def mixed(said, i):
    return f"<PH_START> {said} <PH_END>" if i % 2 else "two"


def symbols():
    return sorted({symbol for said in SYMBOLS.values() for symbol in said.split()})


def call(*words, ranks=1):
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, *launch, *map(str, words)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def train(home, out, *words, ranks=1, model="plain", data="train"):
    return call(
        ROOT / "tools" / "train.py",
        "++family=whisper_qwen3",
        "++normalizer=phonemes",
        f"++model={home / model / 'model'}",
        f"++train_data_set_list={home / data / 'phones.jsonl'}",
        f"++valid_data_set_list={home}/dev/phones.jsonl",
        f"++output_dir={home / out}",
        "++train_conf.max_epoch=2",
        "++dataset_conf.num_workers=1",
        "++optim_conf.lr=0.003",
        "++max_new_tokens=8",
        *words,
        ranks=ranks,
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phonemes")
    make_composite(folder / "plain", symbols(), ctc=True)
    make_composite(folder / "marked", symbols(), marks=True)
    phonemes(folder / "train", 24, 0)
    phonemes(folder / "dev", 3, 1)
    phonemes(folder / "mixed", 24, 0, mixed)
    return folder


@pytest.fixture(scope="module")
def run(home):
    train(home, "one", *LORA, "++dataset_conf.batch_size=400")
    return home / "one"


def losses(folder):
    newest = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    rows = json.loads((newest / "trainer_state.json").read_text())["log_history"]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.parametrize(
    "words",
    [
        ["++dataset_conf.batch_size=100", "++train_conf.accum_grad=2"],
        ["++dataset_conf.num_workers=0", "++dataset_conf.batch_size=200", "++train_conf.use_fsdp=true"],
    ],
    ids=["ddp", "fsdp"],
)
def test_ctc_and_new_rows_are_exact_over_ranks_and_parts(home, run, words):
    train(home, words[-1].split(".")[-1], *LORA, *words, ranks=2)
    one, split = losses(run), losses(home / words[-1].split(".")[-1])
    assert len(one) == len(split) >= 8
    assert max(abs(a - b) for a, b in zip(one, split, strict=True)) < 1e-5
    assert one[-1] < one[0]


def test_the_finished_run_and_its_checkpoints_are_held_to_phonemes(home, run):
    checkpoint = max(run.glob("checkpoint-*"))
    for model in (run, checkpoint):
        out = home / "decoded" / model.name / "hyp.txt"
        call(
            ROOT / "tools" / "decode.py",
            f"++model_dir={model}",
            f"++jsonl_file={home}/dev/phones.jsonl",
            f"++output_file={out}",
        )
        rows = [json.loads(line) for line in out.with_suffix(".jsonl").read_text("utf-8").splitlines()]
        assert [row["key"] for row in rows] == ["utt000", "utt001", "utt002"]
        for row in rows:
            assert set(row["text"].split()) | set(row["ctc_text"].split()) <= set(symbols())
            assert len(row["confidences"]) == len(row["text"].split())
            assert all(0 < value <= 1 for value in row["confidences"])


def test_one_file_is_decoded_and_printed(home, run):
    words = [ROOT / "tools" / "decode.py", "--model_dir", run, "--audio_file", home / "dev" / "utt000.wav"]
    usual = call(*words).stdout
    assert usual.count("\n") == 1 and set(usual.split()) <= set(symbols())
    assert call(*words, "--prompt", PROMPT.after).stdout == usual  # the audio stands where it stood in training
    several = call(*words, "--nbest", 3).stdout.splitlines()
    assert len(set(several)) == 3


def test_a_long_recording_keeps_its_confidences(home, run):
    sound = [np.random.default_rng(0).normal(0, 0.1, 16000), np.zeros(8000), np.full(12000, 0.1)]
    soundfile.write(home / "long.wav", np.concatenate(sound), 16000)
    (home / "long.scp").write_text(f"long {home}/long.wav\n")
    out = home / "decoded" / "long" / "hyp.txt"
    words = [f"++model_dir={run}", f"++scp_file={home}/long.scp", f"++output_file={out}", "++max_segment=1"]
    call(ROOT / "tools" / "decode.py", *words)
    row = json.loads(out.with_suffix(".jsonl").read_text("utf-8"))
    assert len(row["segments"]) > 1 and len(row["confidences"]) == len(row["text"].split()) > 0
    assert row["text"].split() == [symbol for piece in row["segments"] for symbol in piece["text"].split()]


def test_phonemes_and_text_are_learnt_by_one_model(home):
    train(home, "both", "++dataset_conf.batch_size=400", "++train_conf.max_epoch=1", model="marked", data="mixed")
    out = home / "decoded" / "both" / "hyp.txt"
    words = [ROOT / "tools" / "decode.py", f"++model_dir={home / 'both'}", f"++jsonl_file={home}/dev/phones.jsonl"]
    call(*words, f"++output_file={out}")
    rows = [json.loads(line) for line in out.with_suffix(".jsonl").read_text("utf-8").splitlines()]
    assert not any("confidences" in row for row in rows)  # all tokens may be said
    call(*words, f"++output_file={out}", "++vocabulary=phonemes")
    rows = [json.loads(line) for line in out.with_suffix(".jsonl").read_text("utf-8").splitlines()]
    assert all(set(row["text"].split()) <= {*symbols(), "<PH_START>", "<PH_END>"} for row in rows)
