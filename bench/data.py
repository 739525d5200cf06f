"""scp2jsonl: rows per second on local files, bytes over HTTP for large ones."""

from __future__ import annotations

import http.server
import json
import os
import random
import re
import shutil
import struct
import threading
from pathlib import Path

from bench.measure import ROOT, SIDES, check_equal, interleaved, run
from bench.results import Result
from speechllm.files import atomic_write

FILES = 20_000
LARGE, LARGE_BYTES = 4, 5_000_000


def write_wav(path: Path, samples: int) -> None:
    """A wav of silence, 16 kHz, 16 bit. Its samples are a hole in the file, so 20,000 of them take 80 MB."""
    size = 2 * samples
    head = struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + size, b"WAVE", b"fmt ", 16, 1, 1, 16000, 32000, 2, 16, b"data", size
    )
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(len(head) + size)


def make_set(folder: Path, texts: list[str], lengths: list[int], prefix: str = "") -> None:
    """``wav.scp`` and ``text`` of as many wavs as there are lengths (in samples); left alone where it is complete.

    Args:
        prefix: of the paths in wav.scp, where they are not the files' own.
    """
    scp, text = [], []
    (folder / "wavs").mkdir(parents=True, exist_ok=True)
    for i, samples in enumerate(lengths):
        path = folder / "wavs" / f"{i:06d}.wav"
        if not (folder / "text").exists():
            write_wav(path, samples)
        scp.append(f"utt{i:06d} {prefix + path.name if prefix else path}\n")
        text.append(f"utt{i:06d} {texts[i % len(texts)]}\n")
    for name, lines in (("wav.scp", scp), ("text", text)):  # text last: it says that the wavs are there
        with atomic_write(folder / name) as file:
            file.writelines(lines)


class Scp2jsonl:
    """Both commands on the same tables.

    Args:
        upstream: Fun-ASR's clone.
        tokenizer: folder of the tokenizer that counts text_length on both sides.
        work: where everything is written.
    """

    def __init__(self, upstream: Path, tokenizer: Path, work: Path):
        self.upstream, self.tokenizer, self.work = upstream, tokenizer, work
        # Upstream's tool asks for the tokenizer Qwen/Qwen3-0.6B: a folder of that name is found before any hub.
        found = work / "cwd" / "Qwen" / "Qwen3-0.6B"
        shutil.rmtree(found, ignore_errors=True)
        shutil.copytree(tokenizer, found)

    def seconds(self, side: str, data: Path) -> float:
        """Of the whole command. The rows land in ``<work>/<side>.jsonl``."""
        out = self.work / f"{side}.jsonl"
        for left in (out, Path(f"{out}.part")):  # ours would go on from the second
            left.unlink(missing_ok=True)
        words = [f"++scp_file={data / 'wav.scp'}", f"++transcript_file={data / 'text'}", f"++jsonl_file={out}"]
        words.append(f"++max_workers={os.cpu_count()}")
        if side == "upstream":
            command = [self.upstream / "tools" / "scp2jsonl.py", "hydra.run.dir=.", "hydra.output_subdir=null", *words]
        else:
            command = [ROOT / "tools" / "scp2jsonl.py", *words, f"++tokenizer={self.tokenizer}"]
        return run(command, self.work / f"{side}.log", cwd=self.work / "cwd")

    def rows(self, side: str) -> list[str]:
        """The rows, sorted; without the ``key`` that ours have and upstream's have not."""
        with open(self.work / f"{side}.jsonl", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        return sorted(json.dumps({k: v for k, v in row.items() if k != "key"}, sort_keys=True) for row in rows)

    def check(self, data: Path) -> int:
        """The gate: the same rows after sorting; how many there are."""
        for side in SIDES:
            self.seconds(side, data)
        upstream, ours = (self.rows(side) for side in SIDES)
        differ = [pair for pair in zip(upstream, ours, strict=False) if pair[0] != pair[1]]
        check_equal("scp2jsonl: number of rows", len(upstream), len(ours))
        check_equal("scp2jsonl: a row", *(differ[0] if differ else ("", "")))
        return len(ours)


def local(tool: Scp2jsonl, texts: list[str], runs: int, files: int = FILES) -> list[Result]:
    draw = random.Random(0)
    folder = tool.work / f"wavs_{files}"
    make_set(folder, texts, [draw.randrange(16_000, 240_000) for _ in range(files)])  # 1 to 15 s
    rows = tool.check(folder)
    sides = {side: lambda side=side: rows / tool.seconds(side, folder) for side in SIDES}
    found = interleaved(sides, runs, "scp2jsonl, rows/s")
    what = f"scp2jsonl, {rows:,} local wavs"
    return [Result(what, **found, unit="rows/s", more_is_better=True, target=10, gate="same rows after sorting")]


class Counting(http.server.SimpleHTTPRequestHandler):
    """Gives files whole or, as nearly every server does, the range that is asked for; counts what goes out."""

    sent = 0
    lock = threading.Lock()

    def do_GET(self) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        body = Path(self.translate_path(self.path)).read_bytes()
        total = len(body)
        if asked:
            first, last = int(asked[1]), min(int(asked[2]), total - 1)
            body = body[first : last + 1]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{total}")
        head = b"".join(self._headers_buffer)  # a private name of http.server, in which the head waits
        with self.lock:  # before they go out, so that who has received them finds them counted
            Counting.sent += len(head) + 2 + len(body)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        pass


class Server:
    """A local HTTP server of a folder, as a context; ``url`` is where it is."""

    def __init__(self, folder: Path):
        def handler(*args):
            return Counting(*args, directory=str(folder))

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"

    def __enter__(self) -> Server:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def over_http(tool: Scp2jsonl, texts: list[str]) -> list[Result]:
    """Bytes that the server sends, heads included; no timing, so one run says it."""
    folder = tool.work / "large"
    folder.mkdir(parents=True, exist_ok=True)
    with Server(folder / "wavs") as server:
        make_set(folder, texts, [LARGE_BYTES // 2] * LARGE, prefix=server.url)
        tool.check(folder)
        bytes_sent = {}
        for side in SIDES:
            Counting.sent = 0
            tool.seconds(side, folder)
            bytes_sent[side] = [Counting.sent / LARGE]
    what = "scp2jsonl, bytes over HTTP for a wav of 5 MB"
    gate = "same rows after sorting"
    return [Result(what, **bytes_sent, unit="bytes", more_is_better=False, target=20, gate=gate)]
