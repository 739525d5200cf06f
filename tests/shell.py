"""What the tests of the shell side share."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What tests/run.sh and a recipe export must not reach the scripts under test.
OURS = {"PYTHON", "PYTHONPATH", "WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES"}
CLEAN = {name: value for name, value in os.environ.items() if name not in OURS}


def bash(*words, env=None, cwd=None):
    done = subprocess.run(
        ["bash", *map(str, words)], env=CLEAN | (env or {}), cwd=cwd, capture_output=True, timeout=120
    )
    done.stdout, done.stderr = done.stdout.decode(), done.stderr.decode()  # text=True would change line ends
    return done


def script(path, body):
    path.write_text(f"set -euo pipefail\n{body}\n")
    return path
