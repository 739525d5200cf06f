"""qwen-asr's own align(), with a clock; runs in an environment of its own (docs/forced_aligner.md).

python upstream_align.py MODEL_DIR rows.jsonl LANGUAGE OUT.jsonl ROWS THREADS NUMBERS.json

ROWS utterances go into each call; THREADS of torch, 0 for its own choice. The model is loaded, and the first utterance
aligned once, before the clock starts.
"""

import json
import sys
import time
from pathlib import Path

import torch
from qwen_asr import Qwen3ForcedAligner


def main(model_dir: str, jsonl: str, language: str, out: str, rows: str, threads: str, numbers: str) -> None:
    if int(threads):
        torch.set_num_threads(int(threads))
    aligner = Qwen3ForcedAligner.from_pretrained(model_dir)
    aligner.model.eval()
    said = [json.loads(line) for line in Path(jsonl).read_text(encoding="utf-8").splitlines()]

    def align(some: list) -> list:
        return aligner.align([row["audio_path"] for row in some], [row["text"] for row in some], [language] * len(some))

    align(said[:1])
    started = time.perf_counter()
    with open(out, "w", encoding="utf-8") as file:
        for first in range(0, len(said), int(rows)):
            some = said[first : first + int(rows)]
            for row, items in zip(some, align(some), strict=True):
                times = [[item.start_time, item.end_time] for item in items]
                made = {"key": row["key"], "words": [item.text for item in items], "timestamps": times}
                file.write(json.dumps(made, ensure_ascii=False) + "\n")
    told = {"rows_per_second": len(said) / (time.perf_counter() - started), "threads": torch.get_num_threads()}
    Path(numbers).write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
