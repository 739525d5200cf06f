"""Training: utterances per second in the steady state, against funasr-train-ds."""

from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path

from bench.measure import RECIPE, ROOT, SIDES, check_equal, interleaved, run_told
from bench.results import Result
from speechllm.errors import UserError
from speechllm.files import atomic_write

ROWS, GATE_ROWS = 1000, 8
BUDGET = 6000  # of upstream's finetune.sh, in frames of 10 ms plus tokens
CLOSE = 1e-4  # relative difference of the two first losses that the gate allows
FREEZE = {"LLM only": (True, True, False), "all parts": (False, False, False)}
TARGET = 2

# As upstream's finetune.sh: 4 loaders, and each program chooses its threads; and with the cores dealt out by hand.
SETTINGS = {"as shipped": (4, None), "1 thread, 1 loader": (1, 1)}


def take_rows(source: Path, target: Path, count: int) -> Path:
    with open(source, encoding="utf-8") as lines, atomic_write(target) as file:
        file.writelines(islice(lines, count))
    return target


def words(side: str, model: Path, train: Path, dev: Path, out: Path, freeze: tuple, setting: tuple) -> list[str]:
    """The options of both programs, which upstream named; those of one alone stand apart.

    batch_size_sample_max and batch_size_token_max of upstream are raised, or they, not the budget, would make the
    batches; dither is off for the gate.
    """
    loaders, threads = setting
    parts = ("audio_encoder", "audio_adaptor", "llm")
    both = {f"{part}_conf.freeze": str(value).lower() for part, value in zip(parts, freeze, strict=True)}
    both |= {"model": model, "train_data_set_list": train, "valid_data_set_list": dev, "output_dir": out}
    both |= {"dataset_conf.batch_type": "token", "dataset_conf.batch_size": BUDGET, "dataset_conf.num_workers": loaders}
    both |= {"dataset_conf.batch_sampler": "BatchSampler", "dataset_conf.sort_size": 1024}
    both |= {"train_conf.max_epoch": 1, "train_conf.log_interval": 10, "optim_conf.lr": 0.0002}
    theirs = {"device": "cpu", "disable_update": "true", "dataset_conf.data_split_num": 1, "frontend_conf.dither": 0.0}
    theirs |= {"dataset_conf.batch_size_sample_max": 10**6, "dataset_conf.batch_size_token_max": 10**6}
    theirs |= {"train_conf.resume": "false"} | ({"ncpu": threads} if threads else {})
    if side == "upstream":
        hydra = [f"hydra.run.dir={out}", "hydra.output_subdir=null"]
        return hydra + [f"++{key}={value}" for key, value in (both | theirs).items()]
    return [f"++{key}={value}" for key, value in both.items()]


def train(side: str, work: Path, model: Path, train_file: Path, dev: Path, freeze: tuple, setting: tuple) -> dict:
    """The clock's numbers of a whole training run in an empty folder."""
    out = work / "exp"
    shutil.rmtree(out, ignore_errors=True)
    script = ROOT / "bench" / ("upstream_train.py" if side == "upstream" else "our_train.py")
    options = words(side, model, train_file, dev, out, freeze, setting)
    return run_told([script, *options], work / f"{side}.json", cwd=RECIPE, threads=setting[1])


def speed(work: Path, model: Path, jsonl: Path, runs: int) -> list[Result]:
    """Args: jsonl: the mini recipe's training rows."""
    rows = take_rows(jsonl, work / "rows.jsonl", ROWS)
    few = take_rows(jsonl, work / "gate.jsonl", GATE_ROWS)
    gate = check_losses(work, model, few)
    results = []
    for name, setting in SETTINGS.items():
        for part, freeze in FREEZE.items():

            def utterances(side: str, freeze: tuple = freeze, setting: tuple = setting) -> float:
                told = train(side, work, model, rows, few, freeze, setting)
                check_equal(f"training, {side}: rows of an epoch", ROWS, told["rows"])
                return told["rows_per_second"]

            what = f"training, {part}, {name}"
            sides = {side: lambda side=side: utterances(side) for side in SIDES}
            found = interleaved(sides, runs, f"{what}, utt/s")
            results.append(Result(what, **found, unit="utt/s", more_is_better=True, target=TARGET, gate=gate))
    return results


def check_losses(work: Path, model: Path, few: Path) -> str:
    """One batch of the same rows: both compute the same loss. Raises UserError where they do not."""
    losses = [train(side, work, model, few, few, FREEZE["all parts"], (0, 1))["first_loss"] for side in SIDES]
    if abs(losses[0] - losses[1]) > CLOSE * abs(losses[0]):
        raise UserError(f"training: the first loss is {losses[0]} upstream and {losses[1]} here; nothing was timed")
    return f"loss of the same batch {losses[0]:.5f} and {losses[1]:.5f}"
