"""Decoding: utterances per second, wav reading included, against upstream's loop of one file after the other."""

from __future__ import annotations

from pathlib import Path

from bench.measure import RECIPE, ROOT, SIDES, interleaved, run_told
from bench.results import Result
from speechllm.errors import UserError
from speechllm.files import atomic_write

FILES, MOST_DIFFERENT = 200, 1
MAX_TOKENS = 40
TARGET = 3.5
SETTINGS = {"as shipped": (2, None), "1 thread, 1 loader": (1, 1)}  # loaders of ours, threads of both


def first_files(scp: Path, target: Path, count: int) -> Path:
    """The first lines of a wav.scp whose paths start from the recipe's folder, made absolute."""
    lines = [line.split(maxsplit=1) for line in scp.read_text(encoding="utf-8").splitlines()[:count]]
    with atomic_write(target) as file:
        file.writelines(f"{key} {RECIPE / path}\n" for key, path in lines)
    return target


def decode(side: str, work: Path, model: Path, scp: Path, setting: tuple) -> dict:
    """The numbers of one run; its texts land in ``<work>/<side>.txt``."""
    loaders, threads = setting
    out, numbers = work / f"{side}.txt", work / f"{side}.json"
    if side == "upstream":
        words = [ROOT / "bench" / "upstream_decode.py", model, scp, out, MAX_TOKENS, threads or 0]
    else:
        (work / "ours.part").unlink(missing_ok=True)  # ours would go on from what a killed run left
        options = {"model_dir": model, "scp_file": scp, "output_file": out, "device": "cpu"}
        options |= {"max_new_tokens": MAX_TOKENS, "num_workers": loaders}
        words = [ROOT / "bench" / "our_decode.py", *(f"++{key}={value}" for key, value in options.items())]
    return run_told(words, numbers, threads=threads)


def check_texts(work: Path) -> str:
    """How many texts are the same. Raises UserError where more than one differs."""
    upstream, ours = (
        [line.split() for line in (work / f"{side}.txt").read_text(encoding="utf-8").splitlines()] for side in SIDES
    )
    same = sum(a == b for a, b in zip(upstream, ours, strict=True))
    if same < len(ours) - MOST_DIFFERENT:
        raise UserError(f"decoding: only {same} of {len(ours)} texts are the same, see {work}; nothing was timed")
    return f"{same} of {len(ours)} texts the same"


def speed(work: Path, model: Path, scp: Path, runs: int) -> list[Result]:
    """Args: scp: the mini recipe's test set."""
    files = first_files(scp, work / "wav.scp", FILES)
    results = []
    for name, setting in SETTINGS.items():
        for side in SIDES:
            decode(side, work, model, files, setting)
        gate = check_texts(work)

        def utterances(side: str, setting: tuple = setting) -> float:
            return decode(side, work, model, files, setting)["rows_per_second"]

        what = f"decoding, {FILES} files, {name}"
        found = interleaved({side: lambda side=side: utterances(side) for side in SIDES}, runs, f"{what}, utt/s")
        check_texts(work)
        results.append(Result(what, **found, unit="utt/s", more_is_better=True, target=TARGET, gate=gate))
    return results
