"""Where a result comes from: the command, the commit, the host and the package versions."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PACKAGES = ("torch", "transformers", "peft", "accelerate", "kaldi-native-fbank", "soundfile", "soxr", "numpy")


def commit() -> str | None:
    """The project's short git commit, with ``-dirty`` where tracked files differ from it; None outside git."""
    try:
        name = _git("rev-parse", "--short", "HEAD").stdout.strip()
        # The rows of results that a run adds do not make another program.
        changed = _git("diff", "--quiet", "HEAD", "--", ".", ":(exclude)*RESULTS.md", check=False).returncode
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{name}-dirty" if changed else name


def _git(*words: str, check: bool = True) -> subprocess.CompletedProcess:
    return subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True, check=check)


def command() -> str:
    """The command line of this process, as a shell takes it."""
    return shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])


def machine() -> str:
    """Host, processor architecture and number of cores, and the accelerator if torch is loaded and sees one."""
    text = f"{platform.node()}, {platform.machine()}, {os.cpu_count()} cores"
    torch = sys.modules.get("torch")
    return f"{text}, {torch.cuda.get_device_name()}" if torch and torch.cuda.is_available() else text


def provenance() -> dict:
    """What goes into provenance.json of a run."""
    return {
        "command": command(),
        "commit": commit(),
        "machine": machine(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "time": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }
