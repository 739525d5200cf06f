"""The output layer of 151,936 words: logits at the labels only, which is our loss, against logits at every position.

python head.py LAYOUT ROWS STEPS NUMBERS.json

The same model and rows on both sides. ``full`` is what transformers' own class computes when it is given labels. A step
is forward, backward and AdamW, as Trainer has it (fused; gradients freed after the step).
Memory is exact: torch's profiler reports every allocation and every release of the CPU's tensors, and their running sum
has a highest point. What is above weights, gradients and optimiser is that point less these three.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.measure import ROOT, interleaved, run_told
from bench.model import SLIM, VOCABULARY, random_model, rows
from bench.results import Result
from speechllm.errors import UserError
from speechllm.tasks import open_task

BATCH = 8
LAYOUTS = {"hf": "-hf rows", "funasr": "native rows"}
MEMORY_TARGET, TIME_TARGET = 5, 3  # at most a fifth of the memory, a third of the time; for -hf rows


class Loss:
    """The two ways to the same number.

    Args:
        vocabulary: words of the output layer; fewer in tests.
    """

    def __init__(self, layout: str, count: int, sizes: dict = SLIM, vocabulary: int = VOCABULARY):
        self.family, self.model = random_model(sizes, vocabulary, layout)
        self.task = open_task("sft", self.family)
        self.batch = rows(self.family, count)
        self.model.train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)

    def ours(self) -> torch.Tensor:
        return self.task.loss(self.family, self.model, self.batch, self.task.counts(self.batch))

    def full(self) -> torch.Tensor:
        embedded = self.family.embed(self.model, self.batch)[0]
        mask, labels = self.batch["attention_mask"], self.batch["labels"]
        return self.model(inputs_embeds=embedded, attention_mask=mask, labels=labels).loss

    def step(self, loss: Callable[[], torch.Tensor]) -> float:
        """One step's loss."""
        value = loss()
        value.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return value.item()

    def share(self) -> float:
        """The labels' part of all positions."""
        return (self.batch["labels"] != -100).sum().item() / self.batch["attention_mask"].sum().item()


def peak(step: Callable[[], Any]) -> int:
    """The most bytes of CPU tensors that ``step`` holds at a time beyond what there was before it."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def check(loss: Loss) -> list[float]:
    """The gate: both ways give the same loss and the same gradient. Raises UserError where they do not."""
    values, norms = [], []
    for way in (loss.full, loss.ours):
        value = way()
        value.backward()
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in loss.model.parameters()]).item())
        values.append(value.item())
        loss.optimizer.zero_grad()
    for name, (a, b) in {"loss": values, "norm of the gradient": norms}.items():
        if abs(a - b) > 1e-4 * abs(a):
            raise UserError(f"head: the {name} is {a} with full logits and {b} with ours; nothing was measured")
    return values


def measure(layout: str, count: int, steps: int) -> dict:
    """Seconds of each of ``steps`` steps in turn, and bytes above weights, gradients and optimiser, of both ways."""
    loss = Loss(layout, count)
    values = check(loss)
    ways = {"full": loss.full, "ours": loss.ours}
    for way in ways.values():
        loss.step(way)  # the optimiser's state is made

    def seconds(way: Callable[[], torch.Tensor]) -> float:
        started = time.perf_counter()
        loss.step(way)
        return time.perf_counter() - started

    timed = interleaved({name: lambda way=way: seconds(way) for name, way in ways.items()}, steps, f"head, {layout}")
    gradients = sum(p.numel() * p.element_size() for p in loss.model.parameters())  # the rest stood before the step
    above = {name: peak(lambda way=way: loss.step(way)) - gradients for name, way in ways.items()}
    positions = loss.batch["input_ids"].shape[1]
    return {"seconds": timed, "bytes": above, "share": loss.share(), "losses": values, "positions": positions}


def results(work: Path, runs: int) -> list[Result]:
    """Two lines per layout; only -hf rows have targets."""
    found = []
    for layout, name in LAYOUTS.items():
        told = run_told([ROOT / "bench" / "head.py", layout, BATCH, runs], work / f"{layout}.json")
        gate = f"loss {told['losses'][0]:.5f} and {told['losses'][1]:.5f}, same gradient"
        rows_of = f"{name} of 10 s and 40 tokens, labels {told['share']:.0%} of {told['positions']} positions"
        for what, kind, unit, target in (
            ("memory above weights, gradients, optimiser", "bytes", "MB", MEMORY_TARGET),
            ("time of a step", "seconds", "s", TIME_TARGET),
        ):
            numbers = {side: told[kind][side] for side in ("full", "ours")}
            if kind == "bytes":
                numbers = {side: [value / 1e6] for side, value in numbers.items()}
            target = target if layout == "hf" else None
            found.append(
                Result(
                    f"head of 151,936 words, {what}, {rows_of}",
                    numbers["full"],
                    numbers["ours"],
                    unit,
                    False,
                    target,
                    gate,
                )
            )
    return found


if __name__ == "__main__":
    layout, count, steps, numbers = sys.argv[1:]
    told = measure(layout, int(count), int(steps))
    Path(numbers).write_text(json.dumps(told))
    print({way: statistics.median(values) for way, values in told["seconds"].items()}, told["bytes"])
