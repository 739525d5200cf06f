"""Forced alignment: utterances per second in batches, against one by one, and against qwen-asr's own align()."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import numpy as np

from bench.decoding import first_files
from bench.measure import ROOT, interleaved, run_told
from bench.results import Result
from speechllm.boundaries import repair
from speechllm.errors import UserError
from speechllm.files import atomic_write

log = logging.getLogger("speechllm")

FILES, TARGET = 200, 1.5
STEP = 80  # ms of a class
ALIKE = 0.99  # share of boundaries that are to be within a class of qwen-asr's; its sums are another order's
BUDGETS = {"one by one": 1, "ours": 12000}  # frames of a batch; the second is as shipped
THEIRS = {"qwen-asr, one by one": 1, "qwen-asr, batches of 16": 16}


def take_rows(corpus: Path, target: Path, count: int) -> Path:
    """JSONL of a Kaldi folder's first utterances; their audio's absolute paths."""
    from speechllm.formats.kaldi import read_text

    texts = read_text(corpus / "text")
    lines = first_files(corpus / "wav.scp", target.with_suffix(".scp"), count).read_text(encoding="utf-8").splitlines()
    with atomic_write(target) as file:
        for key, path in (line.split(maxsplit=1) for line in lines):
            row = {"audio_path": path, "text": texts[key], "key": key}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return target


def ours(name: str, work: Path, model: Path, rows: Path) -> dict:
    """The numbers of one run of tools/decode.py."""
    home = work / name.replace(" ", "_")
    home.with_suffix(".part").unlink(missing_ok=True)  # it would go on from what a killed run left
    options = {"model_dir": model, "jsonl_file": rows, "output_file": home.with_suffix(".txt"), "device": "cpu"}
    options |= {"boundaries": "argmax", "zero_length": "true", "batch_size": BUDGETS[name]}
    words = [ROOT / "bench" / "our_decode.py", *(f"++{key}={value}" for key, value in options.items())]
    return run_told(words, home.with_suffix(".json"))


def theirs(name: str, work: Path, model: Path, rows: Path, python: str) -> dict:
    """The numbers of one run of align()."""
    home = work / name.replace(" ", "_").replace(",", "")
    words = [ROOT / "bench" / "upstream_align.py", model, rows, "English", home.with_suffix(".jsonl"), THEIRS[name], 0]
    return run_told(words, home.with_suffix(".json"), python=python)


def read(path: Path) -> dict[str, dict]:
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {row["key"]: row for row in rows}


def check_classes(work: Path) -> str:
    """The gate of batches. Raises UserError where one class differs."""
    single, batched = read(work / "one_by_one.jsonl"), read(work / "ours.jsonl")
    wrong = [key for key, row in single.items() if row["classes"] != batched[key]["classes"]]
    if wrong or len(single) != len(batched):
        raise UserError(f"alignment: other classes in a batch, of {wrong}, see {work}; nothing was timed")
    return f"all {sum(len(row['classes']) for row in single.values()):,} classes the same"


def check_times(work: Path) -> str:
    """The gate against qwen-asr, one by one: words the same, times within a class. Raises UserError."""
    told, made = read(work / "qwen-asr_one_by_one.jsonl"), read(work / "one_by_one.jsonl")
    if {key: row["words"] for key, row in told.items()} != {key: row["words"] for key, row in made.items()}:
        raise UserError(f"alignment: other words than qwen-asr's, see {work}; nothing was timed")
    fixed = np.concatenate([repair(np.array(made[key]["classes"]) * STEP)[0] for key in told])
    away = np.abs(fixed - np.concatenate([np.ravel(row["timestamps"]) * 1000 for row in told.values()]))
    near = (away < STEP + 0.5).mean()
    if near < ALIKE:
        raise UserError(f"alignment: only {near:.1%} of the times are within a class of qwen-asr's, see {work}")
    return f"{(away < 0.5).mean():.1%} of the times the same as qwen-asr's one by one, {near:.1%} within a class"


def results(work: Path, model: Path, corpus: Path, runs: int) -> list[Result]:
    """Args: model: in the layout ``qwen``, which both sides open; corpus: the mini recipe's test set."""
    rows, python = take_rows(corpus, work / "rows.jsonl", FILES), os.environ.get("QWEN_ASR_PYTHON", "")
    sides = {name: lambda name=name: ours(name, work, model, rows) for name in BUDGETS}
    if python:
        sides |= {name: lambda name=name: theirs(name, work, model, rows, python) for name in THEIRS}
    else:
        log.info("QWEN_ASR_PYTHON is not set (docs/forced_aligner.md): qwen-asr is not measured")
    for side in sides.values():
        side()
    gates = [check_classes(work), *([check_times(work)] if python else [])]
    what = f"aligning {FILES} utterances"
    rates = {name: lambda side=side: side()["rows_per_second"] for name, side in sides.items()}
    found = interleaved(rates, runs, f"{what}, utt/s")
    check_classes(work)
    return [
        Result(
            f"{what}, {name} against our batches",
            found[name],
            found["ours"],
            "utt/s",
            True,
            TARGET if name == "one by one" else None,
            "; ".join(gates),
        )
        for name in found
        if name != "ours"
    ]
