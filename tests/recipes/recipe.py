"""What the tests of recipes share: a copy of the project, so that they neither find nor leave a corpus or a run in the
checkout, and the recipes run there as a user runs them.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FULL = bool(os.environ.get("SPEECHLLM_FULL"))
SIZES = ["quick"] + ["full"] * FULL


def copy_to(copy):
    """A copy of what git tracks."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in names.split("\0")[:-1]:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name)
    return copy


def run(project, recipe, size, *words):
    env = os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    command = ["bash", str(project / "egs" / recipe / "run.sh"), "--size", size, *words]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
    return project / "egs" / recipe


def score(home, size, name):
    return json.loads((home / "exp" / size / f"decode_{name}" / "score.json").read_text())


def loss(home, size):
    return float(re.findall(r"loss ([\d.]+)", (home / "exp" / size / "train.log").read_text())[-1])
