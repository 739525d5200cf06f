"""local/env.sh: the environment is made once, brought up to date, and yours is left alone."""

import shutil
import subprocess
import sys
import zipfile

import pytest
from shell import CLEAN, ROOT, bash, script

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
