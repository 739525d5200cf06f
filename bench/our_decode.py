"""Our tools/decode.py with a clock: python our_decode.py [words for tools/decode.py ...] NUMBERS.json

The command runs twice, the first time on its first file alone; the clock starts when the model is loaded.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

from speechllm import checkpoint, cli
from tools import decode

open_model = checkpoint.open_model
loaded = 0.0


def clocked(*words, **named):
    global loaded
    opened = open_model(*words, **named)
    loaded = time.perf_counter()
    return opened


def main(options: decode.Options) -> None:
    checkpoint.open_model = clocked
    given = "jsonl_file" if options.jsonl_file else "scp_file"
    whole = Path(getattr(options, given))
    lines = whole.read_text(encoding="utf-8").splitlines()
    first = Path(f"{options.output_file}{whole.suffix}")
    first.write_text(lines[0] + "\n", encoding="utf-8")
    decode.main(replace(options, **{given: str(first)}, output_file=f"{options.output_file}.first"))
    decode.main(options)
    seconds = time.perf_counter() - loaded
    import torch

    told = {"rows_per_second": len(lines) / seconds, "threads": torch.get_num_threads()}
    Path(numbers).write_text(json.dumps(told))


if __name__ == "__main__":
    numbers = sys.argv.pop()
    cli.run(main, decode.Options, __doc__)
