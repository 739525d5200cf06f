"""Miniatures of public corpora, in their layout and with real speech, and the recipes on them as a user runs them."""

import hashlib
import http.server
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BESIDE_CJK = re.compile(r"(?<=[\u4e00-\u9fff])(?=[^ ])|(?<=[^ ])(?=[\u4e00-\u9fff])")


def load(script, name):
    """A prepare script as a module."""
    spec = importlib.util.spec_from_file_location(name, script)
    loaded = sys.modules[name] = importlib.util.module_from_spec(spec)  # where dataclasses look it up
    spec.loader.exec_module(loaded)
    return loaded


class Recipe:
    """A copy of the recipe ``egs/<name>/asr``, so that it neither finds nor leaves anything in the checkout."""

    def __init__(self, root, name):
        self.home = root / "egs" / name / "asr"
        for folder in ("local", f"egs/{name}"):
            shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("data", "exp", "downloads"))
        for file in ("finetune.sh", "decode.sh", "requirements.txt"):
            shutil.copy(ROOT / file, root)
        for folder in ("tools", "speechllm"):
            (root / folder).symlink_to(ROOT / folder)

    def run(self, *words):
        env = os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
        command = ["bash", str(self.home / "run.sh"), *map(str, words)]
        return subprocess.run(command, env=env, cwd="/", capture_output=True, text=True, timeout=300)

    def table(self, path):
        """Ids and values, in the order of the file."""
        return dict(line.split(" ", 1) for line in (self.home / path).read_text(encoding="utf-8").splitlines())


def aishell_sample(shared_data):
    """Recordings of one speaker of an AISHELL sample, with texts that no tag of that sample stands in."""
    texts = {
        path: path.read_text(encoding="utf-8").strip() for path in sorted(shared_data.glob("aishell_sample/B*.txt"))
    }
    return {path.with_suffix(".wav"): text for path, text in texts.items() if text and "[" not in text}


def make_aishell(folder, sample, counts, packed):
    """``data_aishell`` in ``folder``; the speakers in tar.gz each, as they are in the archive, or unpacked.

    Returns:
        the text of every utterance, without the blanks that are put between its words.
    """
    wavs, texts = folder / "data_aishell" / "wav", {}
    (folder / "data_aishell" / "transcript").mkdir(parents=True)
    taken = iter(sample.items())
    for (part, speaker), count in counts.items():
        for number, (source, text) in zip(range(count), taken, strict=False):
            key = f"BAC009{speaker}W{number:04d}"
            target = wavs / part / speaker / f"{key}.wav"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            texts[key] = text
        if packed:
            with tarfile.open(wavs / f"{speaker}.tar.gz", "w:gz") as pack:
                pack.add(wavs / part / speaker, f"{part}/{speaker}")
            shutil.rmtree(wavs / part)
    rows = "".join(f"{key} {BESIDE_CJK.sub(' ', text)} \n" for key, text in texts.items())
    (folder / "data_aishell" / "transcript" / "aishell_transcript_v0.8.txt").write_text(rows, encoding="utf-8")
    return texts


def flac(shared_data):
    """A recording of LibriSpeech, with its words beside it."""
    return shared_data / "fixtures" / "mfa" / "61-70968-0000.flac"


def make_librispeech(folder, shared_data, parts):
    """``LibriSpeech`` in ``folder`` with so many utterances in each part, two per chapter, all of the same words."""
    words = flac(shared_data).with_suffix(".lab").read_text().strip()
    for number, (part, count) in enumerate(parts.items()):
        for index in range(count):
            speaker, chapter = f"{61 + number}", f"{70968 + index // 2}"
            home = folder / "LibriSpeech" / part / speaker / chapter
            home.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(flac(shared_data), home / f"{speaker}-{chapter}-{index:04d}.flac")
            with open(home / f"{speaker}-{chapter}.trans.txt", "a") as file:
                file.write(f"{speaker}-{chapter}-{index:04d} {words}\n")
    return words


def packed(folder, name):
    """The bytes of a tar.gz of ``folder/name``."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as pack:
        pack.add(folder / name, name)
    return made.getvalue()


def md5(content):
    return hashlib.md5(content).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        site, content = self.server, self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        range_ = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(range_[1]) if range_ else 0
        site.requests.append((self.path, start))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", '"one"')
        self.end_headers()
        self.wfile.write(content[start : site.cuts.pop(0) if site.cuts else None])

    def log_message(self, *_):
        pass


def serve(files):
    """A server of ``files``, by path. An answer ends early at each of ``cuts``; ``requests`` has (path, first byte)."""
    site = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.files, site.cuts, site.requests = files, [], []
    site.url = f"http://127.0.0.1:{site.server_address[1]}"
    threading.Thread(target=site.serve_forever, daemon=True).start()
    return site
