"""What was measured, and RESULTS.md, which is made of it."""

from __future__ import annotations

import os
import platform
import re
import statistics
from dataclasses import dataclass
from pathlib import Path

from speechllm.files import atomic_write

HEAD = """# Results

How each number comes about, and what is the same on both sides: [README.md](README.md). A cell holds the median of the
runs and their range. The ratio says how many times better ours is; 2.0 means twice as fast, or half the bytes.

| | ratio | target | upstream | ours | unit |
|---|---|---|---|---|---|
"""


@dataclass
class Result:
    """One line of RESULTS.md.

    Attributes:
        upstream, ours: one number per run.
        unit: of these numbers, such as ``rows/s``.
        more_is_better: how the ratio is formed: ours to upstream's, or upstream's to ours.
        target: the ratio to reach; None where the number is only reported.
        gate: what was found equal before anything was timed.
    """

    what: str
    upstream: list[float]
    ours: list[float]
    unit: str
    more_is_better: bool
    target: float | None
    gate: str

    def ratio(self) -> float:
        """How many times better the median of ours is."""
        upstream, ours = statistics.median(self.upstream), statistics.median(self.ours)
        return ours / upstream if self.more_is_better else upstream / ours

    def line(self) -> str:
        ratio = self.ratio()
        target = "" if self.target is None else f"{self.target:g}, {'met' if ratio >= self.target else 'missed'}"
        cells = (self.what, f"{ratio:.2f}", target, cell(self.upstream), cell(self.ours), self.unit)
        return f"| {' | '.join(cells)} |\n"


def cell(values: list[float]) -> str:
    """Median and, of several runs, the range."""
    shown = [f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" for value in (min(values), max(values))]
    median = statistics.median(values)
    text = f"{median:,.0f}" if median >= 1000 else f"{median:.3g}"
    return text if len(values) == 1 else f"{text} ({shown[0]} to {shown[1]})"


def processor() -> str:
    """The processor's name, where Linux tells it, and the memory."""
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{found[1] if found else platform.processor()}, {memory:.0f} GiB"


def write(path: Path, results: list[Result], facts: dict[str, str]) -> None:
    """The table with the ratios, the gates, and the facts of the run, in this order; lands whole.

    Args:
        facts: ``{name: value}``: machine, commits, versions, command, date.
    """
    with atomic_write(path) as file:
        file.write(HEAD)
        file.writelines(result.line() for result in results)
        file.write("\nFound equal before anything was timed:\n\n")
        file.writelines(f"- {gate}\n" for gate in dict.fromkeys(f"{r.what}: {r.gate}" for r in results))
        file.write("\n| | |\n|---|---|\n")
        file.writelines(f"| {name} | {value} |\n" for name, value in facts.items())
