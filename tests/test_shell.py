"""The shell side: options, stages, and what the scripts call. The environment has test_shell_env.py."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shell import CLEAN, ROOT, bash, script

RECIPES = sorted(ROOT.glob("egs/*/*/run.sh"))
DOORS = [ROOT / "finetune.sh", ROOT / "decode.sh", *RECIPES]

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


@pytest.fixture
def recipe(tmp_path):
    """Runs a recipe of the given stages."""

    def run(body, *words):
        start = f'. {ROOT}/local/stages.sh\nusage=none\nstart_recipe "$@"'
        return bash(script(tmp_path / "run.sh", f"{start}\n{body}"), *words, env={"PYTHON": sys.executable})

    return run


@pytest.mark.parametrize("first, last, ran", [(0, 4, "01234"), (1, 2, "12"), (3, 3, "3"), (4, 0, "")])
def test_the_stages_asked_for_run(recipe, first, last, ran):
    stages = "\n".join(f'if stage {n} "number {n}"; then echo "ran {n}"; fi' for n in range(5))
    done = recipe(stages, f"--stage={first}", "--stop-stage", last)
    assert re.findall(r"ran (\d)", done.stdout) == list(ran)
    assert re.findall(r"stage \d: number (\d)", done.stdout) == list(ran)
    assert "total time 0 min" in done.stdout


def test_a_failed_stage_stops_the_recipe_and_is_named(recipe):
    body = """
    if stage 0 "good"; then true; fi
    if stage 1 "bad"; then (exit 3); fi
    if stage 2 "after"; then echo reached; fi
    """
    done = recipe(body)
    assert done.returncode == 3
    assert "reached" not in done.stdout
    assert "failed in stage 1 (exit status 3)" in done.stderr


def test_a_quick_run_stays_apart_from_the_full_one(recipe):
    names = 'echo "$data $exp $config $results"'
    full, quick = (recipe(names, "--size", size).stdout.splitlines()[0].split() for size in ("full", "quick"))
    assert full == ["data/full", "exp/full", "conf/train.yaml", "RESULTS.md"]
    assert quick == ["data/quick", "exp/quick", "conf/quick.yaml", "exp/quick/RESULTS.md"]
    named = recipe(names, "--size=quick", "--run=a", "--config=conf/b.yaml").stdout.splitlines()[0].split()
    assert named == ["data/quick", "exp/a", "conf/b.yaml", "exp/a/RESULTS.md"]


# ---- the scripts

STUB = """#!/bin/bash
here=$(cd "$(dirname "$0")" && pwd)
case $1 in
  - | -V) exec {python} "$@" ;; # a look at the environment
  -c) echo "$here"; exit ;;     # where its scripts are
esac
printf '%s\\x1f' "$@" >>"$here/calls"
echo >>"$here/calls"
for word; do
  case $word in
    ++jsonl_file=* | ++output_file=*)
      mkdir -p "$(dirname "${{word#*=}}")"
      touch "${{word#*=}}"
      ;;
  esac
done
if [[ $1 == */validate_data.py ]]; then
  mkdir -p "$2"
  touch "$2/wav.scp" "$2/text"
fi
"""


class Dry:
    """A copy of the scripts, and a Python that only writes down what it is called with."""

    def __init__(self, root):
        self.root, self.stub = root, root / "stub"
        for name in ("local", "egs", "conf"):
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("data", "exp", "downloads"))
        for name in ("finetune.sh", "decode.sh", "requirements.txt"):
            shutil.copy(ROOT / name, root)
        for name in ("tools", "speechllm"):
            (root / name).symlink_to(ROOT / name)
        self.stub.mkdir()
        for name, text in {"python": STUB.format(python=sys.executable), "compute-wer": 'touch "${@: -1}"\n'}.items():
            (self.stub / name).write_text(text)
            (self.stub / name).chmod(0o755)

    def calls(self, *words, cwd=None, **env):
        """The Python command lines of a script, each a list of words."""
        done = bash(*words, env=env | {"PYTHON": str(self.stub / "python")}, cwd=cwd or self.root)
        assert done.returncode == 0, done.stderr
        log = self.stub / "calls"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return [line.split("\x1f")[:-1] for line in lines]


@pytest.fixture
def dry(tmp_path):
    return Dry(tmp_path)


def data_set(folder, *files):
    folder.mkdir(parents=True, exist_ok=True)
    for name in files:
        (folder / name).touch()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
@pytest.mark.parametrize("size", ["full", "quick"])
def test_a_recipe_calls_tools_with_options_they_know(dry, path, size):
    run = dry.root / path.relative_to(ROOT)
    needed = re.search(r'refuse "(.*) (is|are) needed"', run.read_text())
    folders = [word for name in re.findall(r"--\w+", needed[1] if needed else "") for word in (name, "/")]
    calls = dry.calls(run, "--size", size, "--nproc", "1", *folders, "++train_conf.max_epoch=3", cwd="/")
    tools = {str((run.parent / call[0]).resolve()) for call in calls}
    scorer = "accuracy_eval" if path.parent.name == "phoneme" else "report"
    maker = "prepare_aligner_data" if path.parent.name == "align" else "scp2jsonl"
    assert {str(ROOT / f"tools/{name}.py") for name in (maker, "train", "decode", scorer)} < tools
    helps = {tool: subprocess.run([sys.executable, tool, "--help"], capture_output=True, text=True) for tool in tools}
    for tool, *words in calls:
        known = helps[str((run.parent / tool).resolve())]
        assert known.returncode == 0, known.stderr
        for word in words:
            if word.startswith("++"):
                assert re.search(rf"--{re.escape(word[2:].split('=')[0])}[\s=]", known.stdout), (tool, word)
        if "--config" in words:
            assert (run.parent / words[words.index("--config") + 1]).is_file(), words
    (train,) = [call for call in calls if call[0].endswith("/train.py")]
    assert train[-1] == "++train_conf.max_epoch=3", "what the user sets comes last, so it wins"


TWO = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "first"}
NODES = ["--nnodes", "2", "--node-rank", "1", "--master-addr", "first", "--master-port"]


@pytest.mark.parametrize(
    "words, env, launch",
    [
        (["--nproc", "1"], {}, []),
        (["--nproc", "2"], {}, ["--nproc-per-node", "2", "--standalone"]),
        ([], {"CUDA_VISIBLE_DEVICES": "0,1,3"}, ["--nproc-per-node", "3", "--standalone"]),
        ([], {"CUDA_VISIBLE_DEVICES": ""}, []),
        (
            [],
            {"CUDA_VISIBLE_DEVICES": "GPU-5a,GPU-6b", "MASTER_PORT": "7"},
            ["--nproc-per-node", "2", "--master-port", "7"],
        ),
        # Fun-ASR's script: WORLD_SIZE counts machines, RANK is this one's number, the port is 26669
        (["--nproc", "1"], TWO, ["--nproc-per-node", "1", *NODES, "26669"]),
        (["--nproc", "8"], TWO | {"MASTER_PORT": "29501"}, ["--nproc-per-node", "8", *NODES, "29501"]),
        (["--nproc", "1"], {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "first", "MASTER_PORT": "7"}, []),
    ],
)
def test_finetune_launches_as_many_processes_as_asked(dry, words, env, launch):
    (call,) = dry.calls("finetune.sh", *words, "--config", "x.yaml", "++model=a b", **env)
    before = ["-m", "torch.distributed.run", *launch] if launch else []
    assert call == [*before, f"{dry.root}/tools/train.py", "--config", "x.yaml", "++model=a b"]


@pytest.mark.parametrize(
    "env,said",
    [
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "first"}, "set RANK"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "set MASTER_ADDR"),
        ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "first"}, "from 0 to 1 (WORLD_SIZE - 1), got '2'"),
        ({"RANK": "1"}, "from 0 to 0 (WORLD_SIZE - 1), got '1'"),
        ({"WORLD_SIZE": "a[$(touch made)]"}, "WORLD_SIZE is the number of machines"),
        ({"WORLD_SIZE": "2", "RANK": "a[$(touch made)]", "MASTER_ADDR": "first"}, "RANK is the number"),
    ],
)
def test_a_machine_that_does_not_know_its_place_is_refused(dry, env, said):
    done = bash("finetune.sh", "--nproc", "2", env=env | {"PYTHON": str(dry.stub / "python")}, cwd=dry.root)
    assert done.returncode != 0 and said in done.stderr
    assert not (dry.stub / "calls").exists() and not (dry.root / "made").exists()


def test_finetune_without_options_is_upstreams(dry):
    (call,) = dry.calls("finetune.sh", CUDA_VISIBLE_DEVICES="")
    assert call == [f"{dry.root}/tools/train.py", "--config", f"{dry.root}/conf/finetune.yaml"]
    # the words of a user who has changed upstream's script
    words = ["++trust_remote_code=true", "++train_conf.effective_save_name_excludes=None", "++llm_conf.freeze=True"]
    (call,) = dry.calls(dry.root / "finetune.sh", *words, CUDA_VISIBLE_DEVICES="", cwd="/")
    assert call[3:] == words


KALDI = ("train/wav.scp train/text dev/wav.scp dev/text", "train.jsonl dev.jsonl")
FUN_ASR = ("train_wav.scp train_text.txt val_wav.scp val_text.txt", "train_example.jsonl val_example.jsonl")


@pytest.mark.parametrize("files, jsonl", [KALDI, FUN_ASR])
def test_finetune_makes_the_jsonl_of_a_data_folder_when_it_is_older(dry, files, jsonl):
    mine, files, jsonl = dry.root / "mine", files.split(), jsonl.split()
    for name in files:
        data_set((mine / name).parent, (mine / name).name)
    command = ["finetune.sh", "--nproc", "1", "--data", "mine", "--tokenizer", "tok"]
    train = [f"++train_data_set_list=mine/{jsonl[0]}", f"++valid_data_set_list=mine/{jsonl[1]}"]
    train = ["--config", f"{dry.root}/conf/finetune.yaml", *train]

    first = dry.calls(*command)
    assert [call[1:] for call in first] == [
        [f"++scp_file=mine/{scp}", f"++transcript_file=mine/{text}", f"++jsonl_file=mine/{out}", "++tokenizer=tok"]
        for scp, text, out in [(*files[:2], jsonl[0]), (*files[2:], jsonl[1])]
    ] + [train]
    assert [call[1:] for call in dry.calls(*command)] == [train]
    os.utime(mine / jsonl[1], (1, 1))
    assert [Path(call[0]).name for call in dry.calls(*command)] == ["scp2jsonl.py", "train.py"]


@pytest.mark.parametrize("files,name", [(KALDI[0], "train/hotwords"), (FUN_ASR[0], "train_hotwords.txt")])
def test_finetune_takes_the_hotwords_of_a_data_folder(dry, files, name):
    for file in files.split():
        data_set((dry.root / "mine" / file).parent, Path(file).name)
    command = ["finetune.sh", "--nproc", "1", "--data", "mine"]
    assert not any("hotwords" in word for call in dry.calls(*command) for word in call)
    (dry.root / "mine" / name).touch()  # newer than the JSONL
    made, trained = dry.calls(*command)
    assert f"++hotwords_file=mine/{name}" in made and f"++transcript_file=mine/{files.split()[1]}" in made
    assert Path(trained[0]).name == "train.py"


def test_two_machines_that_share_a_folder_make_its_jsonl_once(dry):
    for file in KALDI[0].split():
        data_set((dry.root / "mine" / file).parent, Path(file).name)
    slow = STUB.replace("for word; do", "[[ $1 != */scp2jsonl.py ]] || sleep 0.5\nfor word; do")
    (dry.stub / "python").write_text(slow.format(python=sys.executable))
    words, env = ["bash", "finetune.sh", "--nproc", "1", "--data", "mine"], CLEAN | {"PYTHON": str(dry.stub / "python")}
    both = [subprocess.Popen(words, cwd=dry.root, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [one.communicate(timeout=60)[0] for one in both]
    assert [one.returncode for one in both] == [0, 0]
    assert any("waiting for another process" in text for text in said)
    calls = [line.split("\x1f")[0] for line in (dry.stub / "calls").read_text().splitlines()]
    assert sorted(Path(call).name for call in calls) == ["scp2jsonl.py"] * 2 + ["train.py"] * 2


def test_decode_scores_where_there_is_a_text(dry):
    data_set(dry.root / "exp/a")
    data_set(dry.root / "data/test", "wav.scp", "segments")
    decode, *more = dry.calls("decode.sh", "--model-dir", "exp/a", "--data", "data/test/", "++batch_size=1")
    assert decode[1:] == [
        "++model_dir=exp/a",
        "++scp_file=data/test/wav.scp",
        "++output_file=exp/a/decode_test/hyp.txt",
        "++segments_file=data/test/segments",
        "++batch_size=1",
    ]
    assert not more
    data_set(dry.root / "data/test", "text")
    scored = dry.calls("decode.sh", "--model-dir", "exp/a", "--data", "data/test")
    assert [Path(call[0]).name for call in scored] == ["decode.py", *["whisper_mix_normalize.py"] * 2, "report.py"]
    only = dry.calls("decode.sh", "--model-dir", "exp/a", "--data", "data/test", "--score=false")
    assert len(only) == 1


@pytest.mark.parametrize("words", [["finetune.sh"], ["decode.sh", "--model-dir", "exp/a"]])
def test_a_folder_without_data_is_named(dry, words):
    done = bash(*words, "--data", "nowhere", env={"PYTHON": str(dry.stub / "python")}, cwd=dry.root)
    assert done.returncode == 1
    assert "error: no data set nowhere" in done.stderr and "wav.scp" in done.stderr
    assert not (dry.stub / "calls").exists()


@pytest.mark.parametrize("path", DOORS, ids=lambda path: str(path.relative_to(ROOT)))
def test_help_names_every_option_and_needs_no_environment(path):
    done = bash(path, "--help", env={"PYTHON": "/no/such/python"})
    assert done.returncode == 0, done.stderr
    text = path.read_text() + ((ROOT / "local/stages.sh").read_text() if path in RECIPES else "")
    for name in " ".join(re.findall(r"^options\+?=\((.*)\)$", text, re.M)).split():
        assert f"--{name.replace('_', '-')} " in done.stdout
    if path in RECIPES:
        assert re.findall(r"^  (\d)  ", done.stdout, re.M) == list("01234")


@pytest.mark.parametrize("path", DOORS, ids=lambda path: str(path.relative_to(ROOT)))
def test_an_unknown_option_is_refused(path):
    done = bash(path, "--no-such-option", "1", env={"PYTHON": "/no/such/python"})
    assert done.returncode == 2 and "--no-such-option" in done.stderr


def test_shellcheck_is_content():
    files = [
        *ROOT.glob("*.sh"),
        *ROOT.glob("local/*.sh"),
        *ROOT.glob("conf/*.sh"),
        *ROOT.glob("egs/**/*.sh"),
        *ROOT.glob("tests/*.sh"),
    ]
    tool = shutil.which("shellcheck", path=f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}")
    words = [tool, "-x", "-P", "SCRIPTDIR:.", ROOT / ".ci/run", *files]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout
