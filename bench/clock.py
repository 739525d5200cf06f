"""The steady state of a training: from the start of one step to the start of the last, with the rows between."""

from __future__ import annotations

import json
import time
from pathlib import Path

SKIPPED = 8  # steps at the start: loaders fill their queues, kernels are chosen


class Clock:
    """Told of the start of every step, before its forward pass.

    Attributes:
        first_loss: of the first step, for the gate.
    """

    def __init__(self):
        self.starts: list[float] = []
        self.rows: list[int] = []
        self.first_loss: float | None = None

    def step(self, rows: int) -> None:
        self.starts.append(time.perf_counter())
        self.rows.append(rows)

    def loss(self, loss) -> None:
        """Of the step that was just computed; a tensor of one number."""
        if self.first_loss is None:
            self.first_loss = float(loss.detach())

    def write(self, path: str | Path) -> None:
        """``rows`` and ``steps`` in all, ``first_loss``, and ``rows_per_second`` where there were enough steps."""
        import torch

        told = {"rows": sum(self.rows), "steps": len(self.rows), "first_loss": self.first_loss}
        told["threads"] = torch.get_num_threads()
        if len(self.rows) > SKIPPED + 1:
            told["rows_per_second"] = sum(self.rows[SKIPPED:-1]) / (self.starts[-1] - self.starts[SKIPPED])
        Path(path).write_text(json.dumps(told))
