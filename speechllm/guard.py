"""What ends a run before its last epoch: SIGTERM, and a score that no longer gets better."""

from __future__ import annotations

import logging
import mmap
import os
import signal

from transformers import TrainerCallback

log = logging.getLogger("speechllm")


class Termination(TrainerCallback):
    """SIGTERM as a wish: the ranks agree on it, the step ends, a checkpoint is saved, training stops.

    Use as a context around the training. Further signals change nothing: launchers send the same one again.

    Attributes:
        wished: whether this process has received the signal.
        agreed: whether any rank has; set by the trainer, equal on all ranks.
    """

    wished = agreed = False

    def __init__(self):
        self._training = mmap.mmap(-1, 1)  # a byte that the loader's processes see too

    def __enter__(self) -> Termination:
        self.before = signal.signal(signal.SIGTERM, self._note)
        self._training[0] = 1
        return self

    def __exit__(self, *error) -> None:
        self._training[0] = 0
        signal.signal(signal.SIGTERM, self.before)

    def spare(self, worker: int) -> None:
        """For the loader's processes: a signal to the whole group must not take them while the trainer saves."""
        signal.signal(signal.SIGTERM, lambda *received: self._training[0] or os._exit(0))

    def _note(self, *received) -> None:
        if not self.wished:
            log.warning("SIGTERM: saving after this step")
        self.wished = True

    def on_step_end(self, args, state, control, **kwargs):
        if self.agreed:
            control.should_save = control.should_training_stop = True


class EarlyStop(TrainerCallback):
    """Ends the run after ``patience`` validations in a row without a better score; 0: never."""

    def __init__(self, patience: int, higher_is_better: bool):
        self.patience, self.higher_is_better = patience, higher_is_better

    def due(self, history: list[dict]) -> bool:
        """Whether the scores in the trainer's log history, which outlives a resume, say so."""
        scores = [row[name] for row in history for name in row if name.startswith("eval_")]
        if not self.patience or not scores:
            return False
        best = scores.index(max(scores) if self.higher_is_better else min(scores))
        return len(scores) - 1 - best >= self.patience

    def on_evaluate(self, args, state, control, **kwargs):
        if self.due(state.log_history):
            log.info("no better score in %d validations: the run ends at step %d", self.patience, state.global_step)
            control.should_training_stop = True
