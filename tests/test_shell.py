"""The shell side: options, stages, the environment, and what the scripts call."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted(ROOT.glob("egs/*/*/run.sh"))
DOORS = [ROOT / "finetune.sh", ROOT / "decode.sh", *RECIPES]
# What tests/run.sh and a recipe export must not reach the scripts under test.
CLEAN = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "PYTHONPATH", "WORLD_SIZE", "CUDA_VISIBLE_DEVICES")}


def bash(*words, env=None, cwd=None):
    done = subprocess.run(["bash", *map(str, words)], env=CLEAN | (env or {}), cwd=cwd, capture_output=True, timeout=120)
    done.stdout, done.stderr = done.stdout.decode(), done.stderr.decode()  # text=True would change line ends
    return done


def script(path, body):
    path.write_text(f"set -euo pipefail\n{body}\n")
    return path


# ---- local/parse_options.sh


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """A script with options that prints them, each value ended by a NUL."""
    return script(
        tmp_path_factory.mktemp("options") / "x.sh",
        f"""
        stage=0 stop_stage=4 run=""
        options=(stage stop_stage run)
        usage="usage: x.sh [--run NAME]"
        . {ROOT}/local/parse_options.sh
        parse_options "$@"
        printf '%s\\0' "$stage" "$stop_stage" "$run" "${{overrides[@]}}"
        """,
    )


def values(done):
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\0")[:-1]


@pytest.mark.parametrize("words", [["--stop-stage", "2", "--run", "a b"], ["--stop-stage=2", "--run=a b"]])
def test_both_forms(options, words):
    assert values(bash(options, *words)) == ["0", "2", "a b"]


def test_overrides_keep_order_and_words(options):
    given_words = ["++a.b=c d", "--stage", "1", "++list=[0.9,1.0]", "++empty="]
    assert values(bash(options, *given_words)) == ["1", "4", "", "++a.b=c d", "++list=[0.9,1.0]", "++empty="]


def test_the_last_value_wins(options):
    assert values(bash(options, "--run", "a", "--run=b")) == ["0", "4", "b"]


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20))
def test_any_value_stays_text(options, value):
    assert values(bash(options, f"--run={value}"))[2] == value


@pytest.mark.parametrize("value", ["$(touch made)", "`touch made`", "'; touch made; '", 'a" "b', "a[$(touch made)]"])
def test_nothing_in_a_value_is_run(options, value, tmp_path):
    assert values(bash(options, "--run", value, f"++x={value}", cwd=tmp_path))[2:] == [value, f"++x={value}"]
    refused = bash(options, "--stage", value, cwd=tmp_path)
    assert refused.returncode == 2 and value in refused.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words, named",
    [
        (["--stag", "1"], "--stag"),
        (["--stag=1"], "--stag"),
        (["--options=1"], "--options"),  # a variable of the script, but no option
        (["--a.b=1"], "++a.b="),
        (["1"], "'1'"),
        (["--stage", "1", "2"], "'2'"),
        (["--stage"], "--stage"),
        (["--run", "--stage", "1"], "--run"),
        (["--stage", "one"], "'one'"),
        (["--stage=08"], "'08'"),
        (["++key"], "'++key'"),
        (["-x"], "'-x'"),
    ],
)
def test_a_bad_word_is_refused_by_name(options, words, named):
    done = bash(options, *words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert named in done.stderr and "--help" in done.stderr and done.stderr.count("\n") == 1


# ---- local/stages.sh


@pytest.mark.parametrize("first, last, ran", [(0, 4, "01234"), (1, 2, "12"), (3, 3, "3"), (4, 0, "")])
def test_the_stages_asked_for_run(tmp_path, first, last, ran):
    stages = "\n".join(f'if stage {n} "number {n}"; then echo "ran {n}"; fi' for n in range(5))
    done = bash(script(tmp_path / "x.sh", f"stage={first} stop_stage={last}\n. {ROOT}/local/stages.sh\n{stages}"))
    assert re.findall(r"ran (\d)", done.stdout) == list(ran)
    assert re.findall(r"stage \d: number (\d)", done.stdout) == list(ran)
    assert "total time 0 min" in done.stdout


def test_a_failed_stage_stops_the_recipe_and_is_named(tmp_path):
    body = """
    if stage 0 "good"; then true; fi
    if stage 1 "bad"; then (exit 3); fi
    if stage 2 "after"; then echo reached; fi
    """
    done = bash(script(tmp_path / "x.sh", f"stage=0 stop_stage=4\n. {ROOT}/local/stages.sh\n{body}"))
    assert done.returncode == 3
    assert "reached" not in done.stdout
    assert "failed in stage 1 (exit status 3)" in done.stderr


# ---- local/env.sh

DIST = "tiny-1.0.dist-info"
WHEEL = {
    "tiny.py": "def hello():\n    print('hello from tiny')\n",
    f"{DIST}/METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
    f"{DIST}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    f"{DIST}/entry_points.txt": "[console_scripts]\ntiny-hello = tiny:hello\n",
    f"{DIST}/RECORD": "",
}


class Project:
    """A copy of env.sh with requirements that pip finds in the folder wheels, and nowhere else."""

    def __init__(self, root, requirements):
        self.root, self.venv = root, root / ".venv"
        (root / "local").mkdir()
        (root / "wheels").mkdir()
        shutil.copy(ROOT / "local/env.sh", root / "local")
        with zipfile.ZipFile(root / "wheels/tiny-1.0-py3-none-any.whl", "w") as wheel:
            for name, text in WHEEL.items():
                wheel.writestr(name, text)
        (root / "requirements.txt").write_text(requirements)
        (root / "pyproject.toml").write_text('[project.optional-dependencies]\ndev = ["tiny==1.0"]\n')
        self.env = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(root / "wheels"), "PIP_CONFIG_FILE": "/dev/null"}

    def script(self, body, name="x.sh"):
        return script(self.root / name, f'. "$(dirname "${{BASH_SOURCE[0]}}")/local/env.sh"\n{body}')

    def run(self, body='echo "python $PYTHON"', **env):
        return bash(self.script(body), env=self.env | env, cwd=self.root)


@pytest.fixture
def project(tmp_path):
    return lambda requirements="# nothing\n": Project(tmp_path, requirements)


def test_first_use_makes_the_environment_and_later_ones_reuse_it(project):
    fresh = project("tiny==1.0\n")
    first = fresh.run('tiny-hello; echo "python $PYTHON"; echo "path $PYTHONPATH"')
    assert first.returncode == 0, first.stderr
    assert f"making {fresh.venv}" in first.stdout and "installing 1 packages" in first.stdout
    assert first.stdout.endswith(f"hello from tiny\npython {fresh.venv}/bin/python\npath {fresh.root}\n")
    again = fresh.run()
    assert again.stdout == f"python {fresh.venv}/bin/python\n"
    # The scripts call each other, with what the first has exported.
    inner = fresh.script('echo "$PATH $PYTHONPATH"', "inner.sh")
    nested = fresh.run(f'bash {inner}; echo "$PATH $PYTHONPATH"').stdout.splitlines()
    assert len(nested) == 2 and nested[0] == nested[1]


def test_changed_requirements_are_installed(project):
    changed = project()
    assert changed.run().returncode == 0
    mark = changed.venv / "mark"
    mark.touch()
    (changed.root / "requirements.txt").write_text("tiny==1.0\n")
    done = changed.run("tiny-hello")
    assert done.stdout.endswith("hello from tiny\n")
    assert mark.exists(), "a complete environment is brought up to date, not made anew"


def test_an_interrupted_installation_is_done_again(project):
    broken = project("tiny==1.0\nabsent==1.0\n")
    failed = broken.run()
    assert failed.returncode == 1
    assert "error: pip could not install" in failed.stderr and "python" not in failed.stdout.splitlines()[-1]
    mark = broken.venv / "mark"
    mark.touch()
    (broken.root / "requirements.txt").write_text("tiny==1.0\n")
    done = broken.run("tiny-hello")
    assert done.stdout.endswith("hello from tiny\n")
    assert not mark.exists(), "what an interrupted installation left is not trusted"


def test_two_at_once_make_one_environment(project):
    shared = project("tiny==1.0\n")
    x = shared.script("tiny-hello")
    both = [
        subprocess.Popen(["bash", x], env=CLEAN | shared.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [one.communicate(timeout=120)[0] for one in both]
    assert [one.returncode for one in both] == [0, 0]
    assert all(output.endswith("hello from tiny\n") for output in outputs)
    assert sum("making" in output for output in outputs) == 1


def test_a_python_of_yours_is_used_and_not_changed(project):
    yours = project("pytest==0.0.1\n")
    done = yours.run(PYTHON=sys.executable)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"python {sys.executable}\n"
    assert "note: pytest" in done.stderr and "0.0.1" in done.stderr
    assert not yours.venv.exists()


def test_what_your_python_lacks_is_named(project):
    lacking = project("pytest==0.0.1\nno-such-package==1.0\n")
    done = lacking.run(PYTHON=sys.executable)
    assert done.returncode == 1 and done.stdout == ""
    assert "lacks no-such-package==1.0" in done.stderr and "pip install no-such-package==1.0" in done.stderr
    assert not lacking.venv.exists()


def test_a_python_that_is_none(project):
    done = project().run(PYTHON="/no/such/python")
    assert done.returncode == 1 and "PYTHON=/no/such/python" in done.stderr


def test_a_relative_python_outlives_a_change_of_folder(project):
    mine = project()
    (mine.root / "bin").mkdir()
    (mine.root / "bin/mine").symlink_to(sys.executable)
    done = mine.run('cd /; "$PYTHON" -c "print(1)"', PYTHON="bin/mine")
    assert done.stdout == "1\n", done.stderr


def test_a_venv_made_by_hand_is_left_alone(project):
    hand = project("no-such-package==1.0\n")
    (hand.venv / "bin").mkdir(parents=True)
    (hand.venv / "bin/python").symlink_to(sys.executable)
    done = hand.run()
    assert done.returncode == 1 and "lacks no-such-package" in done.stderr
    assert [path.name for path in hand.venv.rglob("*")] == ["bin", "python"]


def test_extras_come_from_pyproject(project):
    extra = project()
    assert extra.run("need_extras dev; tiny-hello").stdout.endswith("hello from tiny\n")
    assert extra.run("need_extras dev; tiny-hello").stdout == "hello from tiny\n"


# ---- the scripts


@pytest.mark.parametrize("path", DOORS, ids=lambda path: str(path.relative_to(ROOT)))
def test_help_names_every_option_and_needs_no_environment(path):
    done = bash(path, "--help", env={"PYTHON": "/no/such/python"})
    assert done.returncode == 0, done.stderr
    for name in re.search(r"^options=\((.*)\)$", path.read_text(), re.M)[1].split():
        assert f"--{name.replace('_', '-')} " in done.stdout
    if path in RECIPES:
        assert re.findall(r"^  (\d)  ", done.stdout, re.M) == list("01234")


@pytest.mark.parametrize("path", DOORS, ids=lambda path: str(path.relative_to(ROOT)))
def test_an_unknown_option_is_refused(path):
    done = bash(path, "--no-such-option", "1", env={"PYTHON": "/no/such/python"})
    assert done.returncode == 2 and "--no-such-option" in done.stderr


def test_shellcheck_is_content():
    files = [*ROOT.glob("*.sh"), *ROOT.glob("local/*.sh"), *ROOT.glob("egs/**/*.sh"), *ROOT.glob("tests/*.sh")]
    tool = shutil.which("shellcheck", path=f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}")
    words = [tool, "-x", "-P", "SCRIPTDIR", ROOT / ".ci/run", *files]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
