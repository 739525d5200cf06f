"""What a run shows and when it validates: callbacks of transformers.Trainer."""

from __future__ import annotations

import logging
import sys
import time

from tqdm import tqdm
from transformers import TrainerCallback

from speechllm.config import TrainConf

log = logging.getLogger("speechllm")
steps = logging.getLogger("speechllm.steps")  # one line per log_interval, to the file alone: the screen has the bar


class Schedule(TrainerCallback):
    """Validates and saves every ``validate_interval`` steps or epoch, and at the end; saves more often if asked."""

    def __init__(self, conf: TrainConf, steps_per_epoch: int):
        self.validate = min(conf.validate_interval or steps_per_epoch, steps_per_epoch)
        self.save = conf.save_checkpoint_interval or self.validate

    def on_train_begin(self, args, state, control, **kwargs):
        rising = args.get_warmup_steps(state.max_steps)
        if rising > state.max_steps / 2 and state.is_world_process_zero:
            log.warning(
                "the learning rate rises in %d steps, and the run has %d: it will learn little; lower "
                "scheduler_conf.warmup, or give it as a share such as 0.05",
                rising,
                state.max_steps,
            )

    def on_step_end(self, args, state, control, **kwargs):
        last = state.global_step >= state.max_steps
        if last or state.global_step % self.validate == 0:
            control.should_evaluate = control.should_save = True
        if state.global_step % self.save == 0:
            control.should_save = True


class Progress(TrainerCallback):
    """The bar on the screen and the lines of the log: loss, utterances per second, padding, time left.

    Attributes:
        rows, frames, cells: what the steps since the start held, over all ranks: utterances, frames of 10 ms, and
            frames with padding.
    """

    def __init__(self):
        self.rows = self.frames = self.cells = 0
        self.bar = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error) -> None:
        if self.bar is not None:
            self.bar.close()  # before a message of what went wrong

    def on_train_begin(self, args, state, control, **kwargs):
        shown = state.is_world_process_zero
        interval = 0.5 if sys.stderr.isatty() else 20
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            unit="step",
            desc="train",
            disable=not shown,
            mininterval=interval,
        )
        self.start = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.set_postfix_str(self.rate(), refresh=False)
        self.bar.update()

    def count(self, rows: float, frames: float, cells: float) -> None:
        """Add what one step held."""
        self.rows, self.frames, self.cells = self.rows + rows, self.frames + frames, self.cells + cells

    def rate(self) -> str:
        seconds = time.monotonic() - self.start
        padding = 1 - self.frames / max(self.cells, 1)
        return f"{self.rows / max(seconds, 1e-9):.0f} utt/s, padding {padding:.1%}"

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            numbers = "loss {loss:.5f} grad_norm {grad_norm:.3f} lr {learning_rate:.3g}".format(**logs)
            steps.info("step %d epoch %.2f %s %s", state.global_step, state.epoch, numbers, self.rate())
