"""Sanity check before training: takes the options of tools/train.py, trains nothing, writes nothing.

A few rows go through the run's collator, model and loss. The report shows what they learn and what is wrong; where a
check fails, the exit status is 1.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from speechllm import cli, upstream
from speechllm.config import RunConfig


def main(config: RunConfig) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from speechllm.doctor import examine

    report = examine(config)
    print(report)
    sys.exit(1 if report.failed else 0)


if __name__ == "__main__":
    cli.run(main, RunConfig, __doc__, translate=upstream.translate)
