"""Write a checkpoint in another layout, or a checkpoint-N as a whole model: ++model_dir, ++format, ++output_dir."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from speechllm import cli


@dataclass
class Options:
    model_dir: str
    """A finished run, a run's checkpoint-N, a folder or a hub name."""
    output_dir: str
    """Folder of the new checkpoint; it must not hold anything."""
    format: Literal["funasr", "hf", "qwen"] = "funasr"
    """funasr: config.yaml and model.pt, which funasr.AutoModel opens; hf: transformers'; qwen: qwen-asr's aligner."""
    hub: Literal["ms", "hf"] = "ms"
    """Where a hub name is looked up: ModelScope or Hugging Face."""


def main(options: Options) -> None:
    from speechllm.checkpoint import export

    export(options.model_dir, options.hub, options.format, options.output_dir)


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
