"""The comparison with upstream, part by part; bench/run.sh prepares what it needs, and calls it."""

import datetime
import importlib.metadata
import logging
import os
import platform
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from speechllm import cli, provenance
from speechllm.errors import UserError

log = logging.getLogger("speechllm")

PARTS = ("scp2jsonl", "http", "train", "decode", "head", "encoder", "align")
WITH_CLONE = ("scp2jsonl", "http")
ENOUGH = 5  # runs
WORK = Path(__file__).resolve().parent / "work"
PACKAGES = ("torch", "transformers", "funasr", "numpy", "kaldi-native-fbank", "soundfile", "modelscope", "tokenizers")


@dataclass
class Options:
    upstream: str = ""
    """Clone of FunAudioLLM/Fun-ASR; its scp2jsonl.py runs."""
    parts: list[Literal["scp2jsonl", "http", "train", "decode", "head", "encoder", "align"]] = field(
        default_factory=lambda: list(PARTS)
    )
    """What is measured; only a run of all of them writes bench/RESULTS.md."""
    runs: int = ENOUGH
    """Runs of each side, in turn."""


def main(options: Options) -> None:
    clone = Path(options.upstream).resolve()
    if set(options.parts) & set(WITH_CLONE) and not (clone / "tools" / "scp2jsonl.py").is_file():
        raise UserError(
            f"{clone}: no tools/scp2jsonl.py there; give a clone of FunAudioLLM/Fun-ASR with --upstream DIR"
        )
    from bench import results

    facts = about(clone if options.upstream else None, options)
    found = [result for part in PARTS if part in options.parts for result in measure(part, clone, options.runs)]
    whole = len(options.parts) == len(PARTS) and options.runs >= ENOUGH
    path = (WORK.parent if whole else WORK) / "RESULTS.md"
    results.write(path, found, facts)
    print("".join(f"{result.ratio():8.2f}  {result.what}\n" for result in found), end="")
    log.info("%s: written%s", path, "" if whole else f"; the whole one needs all parts and {ENOUGH} runs")


def measure(part: str, clone: Path, runs: int) -> list:
    """The lines of one part."""
    from bench import align, data, decoding, encoder, head, training
    from bench.measure import RECIPE
    from speechllm.formats.kaldi import read_text

    work, corpus = WORK / part, RECIPE / "data" / "full"
    work.mkdir(parents=True, exist_ok=True)
    if part == "train":
        return training.speed(work, WORK / "tiny", corpus / "train.jsonl", runs)
    if part == "decode":
        return decoding.speed(work, WORK / "trained", corpus / "test" / "wav.scp", runs)
    if part == "head":
        return head.results(work, runs)
    if part == "encoder":
        return encoder.results(work, runs)
    if part == "align":
        return align.results(work, WORK / "aligner", corpus / "test", runs)
    texts = [text for name in ("train", "train_zh") for text in read_text(corpus / name / "text").values()]
    tool = data.Scp2jsonl(clone, WORK / "tiny" / "Qwen3-0.6B", work)
    return data.local(tool, texts, runs) if part == "scp2jsonl" else data.over_http(tool, texts)


def about(clone: Path | None, options: Options) -> dict[str, str]:
    """The machine, both commits, the versions, the command and the date."""
    from bench.results import processor

    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return {
        "machine": f"{provenance.machine()}; {processor()}",
        "load before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "our commit": str(provenance.commit()),
        "upstream": f"FunAudioLLM/Fun-ASR {commit_of(clone)}; funasr {importlib.metadata.version('funasr')}",
        "versions": f"Python {platform.python_version()}, {versions}",
        "command": f"`bash bench/run.sh --upstream DIR --part {','.join(options.parts)} --runs {options.runs}`",
        "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
    }


def commit_of(clone: Path | None) -> str:
    """The clone's commit, if it is one."""
    if clone is None or not (clone / ".git").exists():
        return "(a copy without .git)" if clone else "(not used)"
    done = subprocess.run(["git", "-C", clone, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip()


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
