"""The house: imports run one way, commands answer at once, limits hold."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Each layer may import from itself and from those before it.
LAYERS = [
    ["files", "errors", "provenance", "hub", "cli", "download", "processes"],
    ["sample", "config", "upstream", "freeze_policy"],
    ["sources"],
    ["audio", "text", "phonemes"],
    ["formats"],
    ["augment", "vocabulary"],
    ["batching", "segments"],
    ["metrics", "boundaries"],
    ["models"],
    ["tasks"],
    ["checkpoint", "progress", "qlora", "examples"],
    ["parallel", "guard"],
    ["trainer"],
    ["run", "doctor"],
    ["decode"],
    ["pseudo_labels"],
    ["report"],
    ["views"],
]
RANK = {name: number for number, names in enumerate(LAYERS) for name in names}
MODULES = sorted((ROOT / "speechllm").rglob("*.py"))
TOOLS = sorted(path.stem for path in (ROOT / "tools").glob("*.py"))


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "speechllm":
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    own = path.relative_to(ROOT / "speechllm").parts[0].removesuffix(".py")
    if own != "__init__":
        assert own in RANK, f"give {own} its place in LAYERS"
        against = [name for name in imported(path) if RANK[name] > RANK[own]]
        assert not against, f"{own} imports {against}, which stand above it"


def test_the_trainer_and_the_decoder_know_no_name():
    from speechllm.models import FAMILIES
    from speechllm.tasks import TASKS

    paths = [ROOT / "speechllm" / f"{name}.py" for name in ("trainer", "run", "decode", "batching", "checkpoint")]
    paths += [ROOT / "speechllm" / "progress.py", *(ROOT / "speechllm" / "doctor").glob("*.py")]
    for path in paths:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        known = words & (set(FAMILIES) | set(TASKS))
        assert not known, f"{path.name} names {known}"


def test_importing_the_package_is_light():
    code = "import sys, speechllm.models, speechllm.tasks, speechllm.checkpoint;"
    code += "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("name", TOOLS)
def test_help_is_there_at_once(tool, name):
    times = []
    for _ in range(3):  # the machine may be busy: the best of three counts
        started = time.monotonic()
        done = tool(name, "--help")
        times.append(time.monotonic() - started)
        assert done.returncode == 0 and "usage:" in done.stdout
    assert min(times) < 1.0


@pytest.mark.parametrize("path", MODULES + sorted((ROOT / "tools").glob("*.py")), ids=lambda path: path.name)
def test_files_and_functions_stay_short(path):
    text = path.read_text(encoding="utf-8")
    limit = 80 if path.parent.name == "tools" else 400
    assert text.count("\n") <= limit
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name
