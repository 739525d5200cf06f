"""What the tests share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real speech: $SHARED_DATA, or shared/data beside the project."""
    folder = Path(os.environ.get("SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real speech in {folder}; set SHARED_DATA to a folder that has it")
    return folder


@pytest.fixture
def tool(tmp_path):
    """``tool("name", "++key=value", ...)`` runs tools/name.py as a user would, in an empty folder."""

    def run(name: str, *words: str) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, words)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    return run
