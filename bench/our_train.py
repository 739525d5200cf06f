"""Our trainer with a clock: python our_train.py [words for tools/train.py ...] NUMBERS.json"""

import os
import sys

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # as tools/train.py

from bench.clock import Clock
from speechllm import cli, upstream
from speechllm.config import RunConfig
from speechllm.decode import score_dev
from speechllm.run import train
from speechllm.trainer import SpeechTrainer

clock = Clock()
compute_loss = SpeechTrainer.compute_loss


def clocked(self, model, inputs, *rest, **named):
    clock.step(len(inputs["input_ids"]))
    loss = compute_loss(self, model, inputs, *rest, **named)
    clock.loss(loss)
    return loss


if __name__ == "__main__":
    numbers = sys.argv.pop()
    SpeechTrainer.compute_loss = clocked
    train(cli.parse(RunConfig, upstream.translate(sys.argv[1:])), score_dev)
    clock.write(numbers)
