"""Fine-tune a model: --config conf/x.yaml, then ++key=value for what differs.

The options of Fun-ASR's own trainer are taken too, and the keys of a YAML that is published for Qwen3-ForcedAligner:
speechllm/upstream says how each is honoured, or why not.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from speechllm import cli, upstream
from speechllm.config import RunConfig


def main(config: RunConfig) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the loader's workers are forked
    from speechllm.decode import score_dev
    from speechllm.run import train

    train(config, score_dev, upstream.notes(sys.argv[1:]))


if __name__ == "__main__":
    cli.run(main, RunConfig, __doc__, translate=upstream.translate)
