"""Fine-tune a model: --config conf/x.yaml, then ++key=value for what differs."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from speechllm import cli
from speechllm.config import RunConfig


def main(config: RunConfig) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the loader's workers are forked
    from speechllm.decode import score_dev
    from speechllm.run import train

    train(config, score_dev)


if __name__ == "__main__":
    cli.run(main, RunConfig, __doc__)
