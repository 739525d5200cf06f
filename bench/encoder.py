"""Whisper's encoder in training, on utterances of 2 s: on their real length, and padded to 30 s as Whisper has it.

python encoder.py RUNS NUMBERS.json

Random weights in the sizes of whisper-base, one utterance per step. A step is forward and backward through the encoder
and the projector. ``padded`` is transformers' own pass.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bench.measure import ROOT, interleaved, run_told
from bench.results import Result
from speechllm.errors import UserError

BASE = {"d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048, "num_mel_bins": 80}
FRAMES, WHOLE = 200, 3000  # of 10 ms
TARGET = 5


class Encoders:
    """The two ways through one encoder.

    Args:
        sizes: of Whisper's config; smaller ones in tests.
    """

    def __init__(self, sizes: dict = BASE):
        from transformers import WhisperConfig

        from speechllm.models.whisper_qwen3.model import Encoder, Projector

        torch.manual_seed(0)
        self.encoder = Encoder(WhisperConfig(**sizes)).train()
        self.projector = Projector(sizes["d_model"], 1, sizes["d_model"])
        self.mel = torch.randn(1, FRAMES, sizes["num_mel_bins"])
        self.silence = torch.nn.functional.pad(self.mel, (0, 0, 0, WHOLE - FRAMES))

    def ours(self) -> torch.Tensor:
        return self.projector(self.encoder(self.mel, torch.ones(1, FRAMES)))

    def padded(self) -> torch.Tensor:
        return self.projector(self.encoder.padded(self.silence)[:, : FRAMES // 2])

    def check(self) -> float:
        """The gate: the greatest difference between the real length and 30 s under a mask. Raises UserError."""
        mask = (torch.arange(WHOLE) < FRAMES)[None].float()
        with torch.no_grad():
            whole = self.encoder(self.silence, mask)[:, : FRAMES // 2]
            found = (whole - self.encoder(self.mel, mask[:, :FRAMES])).abs().max().item()
        if not found < 1e-4:
            raise UserError(f"encoder: the real length differs by {found} from 30 s under a mask; nothing was measured")
        return found


def seconds(way: Callable[[], torch.Tensor]) -> float:
    started = time.perf_counter()
    way().sum().backward()
    return time.perf_counter() - started


def measure(runs: int) -> dict:
    """Seconds of each step, in turn, and what the gate found."""
    both = Encoders()
    found = both.check()
    ways = {"padded": both.padded, "ours": both.ours}
    for way in ways.values():
        seconds(way)
    timed = interleaved({name: lambda way=way: seconds(way) for name, way in ways.items()}, runs, "encoder")
    return {"seconds": timed, "difference": found}


def results(work: Path, runs: int) -> list[Result]:
    told = run_told([ROOT / "bench" / "encoder.py", runs], work / "encoder.json")
    gate = f"real length and 30 s under a mask differ by at most {told['difference']:.1e}"
    what = "Whisper's encoder and the projector in training, an utterance of 2 s, padded to 30 s against real length"
    return [Result(what, told["seconds"]["padded"], told["seconds"]["ours"], "s", False, TARGET, gate)]


if __name__ == "__main__":
    runs, numbers = sys.argv[1:]
    told = measure(int(runs))
    Path(numbers).write_text(json.dumps(told))
    print({way: statistics.median(values) for way, values in told["seconds"].items()}, told["difference"])
