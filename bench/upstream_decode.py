"""Upstream's decoding, one file after the other, as its decode.py does it, with a clock.

python upstream_decode.py MODEL_DIR wav.scp OUT.txt MAX_TOKENS THREADS NUMBERS.json

The model is loaded, and the first file decoded once, before the clock starts. Left out of decode.py's call: vad_model
(every file is short), and remote_code, since the clone's model.py needs torchaudio for time stamps that nobody asks for
here; funasr's own copy of the class decodes. Dither is off, so that both sides hear the same.
"""

import json
import sys
import time
from pathlib import Path

import torch
from funasr import AutoModel


def main(model_dir: str, scp: str, out: str, max_tokens: str, threads: str, numbers: str) -> None:
    ncpu = {"ncpu": int(threads)} if int(threads) else {}
    model = AutoModel(
        model=model_dir, device="cpu", disable_update=True, disable_pbar=True, frontend_conf={"dither": 0.0}, **ncpu
    )
    lines = [line.split(maxsplit=1) for line in Path(scp).read_text(encoding="utf-8").splitlines()]

    def text(path: str) -> str:
        return model.generate(input=[path], cache={}, batch_size=1, max_length=int(max_tokens))[0]["text"]

    text(lines[0][1])
    started = time.perf_counter()
    with open(out, "w", encoding="utf-8") as file:
        for key, path in lines:
            file.write(f"{key}\t{text(path)}\n")
    told = {"rows_per_second": len(lines) / (time.perf_counter() - started), "threads": torch.get_num_threads()}
    Path(numbers).write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
