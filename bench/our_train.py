"""Our tools/train.py with a clock: python our_train.py [words for tools/train.py ...] NUMBERS.json"""

import os
import sys

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # as tools/train.py, before torch is there

from bench.clock import Clock
from speechllm import cli, upstream
from speechllm.config import RunConfig
from speechllm.trainer import SpeechTrainer
from tools import train

clock = Clock()
compute_loss = SpeechTrainer.compute_loss


def clocked(self, model, inputs, *rest, **named):
    clock.step(len(inputs["input_ids"]))
    loss = compute_loss(self, model, inputs, *rest, **named)
    clock.loss(loss)
    return loss


def main(config: RunConfig) -> None:
    SpeechTrainer.compute_loss = clocked
    train.main(config)
    clock.write(numbers)


if __name__ == "__main__":
    numbers = sys.argv.pop()
    cli.run(main, RunConfig, __doc__, translate=upstream.translate)
