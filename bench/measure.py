"""Running and timing commands: interleaved, so that a change of the machine's mood meets both sides alike."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from speechllm.errors import UserError

log = logging.getLogger("speechllm")

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "egs" / "mini" / "asr"  # its JSONL names audio relative to this folder
SIDES = ("upstream", "ours")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM")


def environment(threads: int | None = None) -> dict[str, str]:
    """This process's environment with torch's number of threads given, or left to each program."""
    env = {name: value for name, value in os.environ.items() if name not in THREADS}
    env |= {"no_proxy": "127.0.0.1,localhost", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    return env | ({"OMP_NUM_THREADS": str(threads)} if threads else {})


def run(
    words: list, log_file: Path, cwd: Path = RECIPE, threads: int | None = None, python: str = sys.executable
) -> float:
    """Seconds of a command with this Python, or another one. What it prints goes to ``log_file``.

    Raises:
        UserError: it failed.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with open(log_file, "w", encoding="utf-8") as out:
        started = time.monotonic()
        command = [python, *map(str, words)]
        code = subprocess.run(command, cwd=cwd, env=environment(threads), stdout=out, stderr=out).returncode
        seconds = time.monotonic() - started
    if code:
        last = log_file.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2][-300:]
        raise UserError(f"{words[0]} ended with status {code} ({last}); its output is in {log_file}")
    return seconds


def run_told(words: list, told: Path, **where: object) -> dict:
    """Run a command of this folder that writes its numbers to ``told`` (JSON); the log lands beside it."""
    told.unlink(missing_ok=True)
    run([*words, told], told.with_suffix(".log"), **where)
    return json.loads(told.read_text())


def interleaved(sides: dict[str, Callable[[], float]], runs: int, what: str) -> dict[str, list[float]]:
    """Call each side in turn, ``runs`` times; every second round goes the other way round."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(runs):
        for name in list(sides) if number % 2 == 0 else reversed(sides):
            found[name].append(sides[name]())
        log.info("%s, run %d of %d: %s", what, number + 1, runs, {name: round(found[name][-1], 3) for name in sides})
    return found


def check_equal(what: str, upstream: object, ours: object) -> None:
    """The gate. Raises UserError where the two sides do not do the same, since then a ratio says nothing."""
    if upstream != ours:
        raise UserError(f"{what} differs: upstream {upstream}, ours {ours}; nothing was timed")
