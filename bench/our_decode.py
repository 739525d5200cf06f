"""Our decoding of a set, as tools/decode.py does it, with a clock.

python our_decode.py MODEL_DIR wav.scp OUT.txt MAX_TOKENS NUM_WORKERS NUMBERS.json

The model is loaded, and the first file decoded once, before the clock starts. OUT.txt is made anew.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # both as tools/decode.py
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from speechllm.checkpoint import open_model
from speechllm.config import DecodeOptions
from speechllm.decode import decode_set
from speechllm.formats.kaldi import samples


def main(model_dir: str, scp: str, out: str, max_tokens: str, num_workers: str, numbers: str) -> None:
    options = DecodeOptions(max_new_tokens=int(max_tokens), num_workers=int(num_workers))
    opened = open_model(model_dir)
    first = samples(scp, prompt=opened.prompt)[:1]
    decode_set(opened, first, [row.speech_length for row in first], options, f"{out}.first")
    started = time.perf_counter()
    data = samples(scp, prompt=opened.prompt)
    decode_set(opened, data, [row.speech_length for row in data], options, out)
    told = {"rows_per_second": len(data) / (time.perf_counter() - started), "threads": torch.get_num_threads()}
    Path(numbers).write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
