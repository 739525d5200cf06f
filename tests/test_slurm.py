"""conf/slurm_finetune.sh, with a SLURM that is a few lines of shell."""

import os
import re
import signal
import subprocess
import time

import pytest
from shell import CLEAN, ROOT

SRUN = """#!/bin/bash
# The command once per node, all at a time; the highest status. Each process of the step gets the job's signals.
trap : TERM
while [[ $1 == --* ]]; do echo "$1"; shift; done >srun
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do
  SLURM_NODEID=$node "$@" &
  nodes+=($!)
done
for pid in "${nodes[@]}"; do
  while kill -0 "$pid" 2>/dev/null; do wait "$pid"; done # a signal ends only one wait
  wait "$pid"
  status=$?
  ((highest = status > highest ? status : highest))
done
exit "$highest"
"""
FINETUNE = """
echo "$RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT $*" >>calls
trap 'echo saved >>calls; exit 1' TERM # torchrun's status when it was told to end
case $(<plan) in
  done) exit ;;
  fails) ((RANK == 0)) || exit 3 ;;
esac
while :; do sleep 0.02; done
"""
SCONTROL = """#!/bin/bash
echo "$*" >>scontrol
[[ $1 != show ]] || printf 'node%s\\n' {7..9999} # more than a pipe holds
"""


@pytest.fixture
def job(tmp_path):
    """Runs the script as SLURM would, in a folder with a finetune.sh of ours. plan: done, fails or endless."""
    programs = {"srun": SRUN, "scontrol": SCONTROL, "squeue": "#!/bin/bash\ncat state\n"}
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "finetune.sh").write_text(FINETUNE)
    spool = tmp_path / "slurm_script"  # SLURM runs a copy
    spool.write_text((ROOT / "conf/slurm_finetune.sh").read_text())
    slurm = {"JOB_ID": "71234", "JOB_NODELIST": "node[7-8]", "JOB_NUM_NODES": "2", "CPUS_PER_TASK": "48"}
    env = CLEAN | {f"SLURM_{name}": value for name, value in slurm.items()}
    env["PATH"] = f"{tmp_path / 'bin'}:{os.environ['PATH']}"

    def run(plan, state="RUNNING", told=False):
        (tmp_path / "plan").write_text(plan)
        (tmp_path / "state").write_text(state)
        words = ["bash", spool, "--data", "my data", "++optim_conf.lr=1"]
        started = subprocess.Popen(
            words, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        calls = tmp_path / "calls"
        while told and not (calls.exists() and calls.read_text().count("\n") == 2) and started.poll() is None:
            time.sleep(0.02)
        if told and started.poll() is None:
            time.sleep(0.5)  # so that a node that fails has done so
            os.killpg(started.pid, signal.SIGTERM)
        said = started.communicate(timeout=60)[0].decode()
        return started.returncode, said, (tmp_path / "scontrol").read_text().splitlines()

    run.folder = tmp_path
    return run


def test_each_node_knows_its_place(job):
    status, said, asked = job("done")
    assert (status, asked) == (0, ["show hostnames node[7-8]"]), said
    ends = "2 node7 21234 --data my data ++optim_conf.lr=1"
    assert sorted((job.folder / "calls").read_text().splitlines()) == [f"0 {ends}", f"1 {ends}"]
    assert (job.folder / "srun").read_text().split() == ["--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=48"]


def test_a_run_that_was_told_to_end_saves_and_is_queued_again(job):
    status, said, asked = job("endless", told=True)
    assert status == 143 and "queued again" in said
    assert (job.folder / "calls").read_text().count("saved") == 2
    assert asked[1:] == ["requeue 71234"]


def test_a_cancelled_job_is_not_queued_again(job):
    status, _, asked = job("endless", state="COMPLETING", told=True)
    assert status == 143 and len(asked) == 1


def test_a_failure_is_no_reason_to_go_on(job):
    status, said, asked = job("fails", told=True)  # SLURM may end the other nodes then
    assert status == 255 and "error: node 1 failed with status 3" in said
    assert len(asked) == 1


def test_it_is_to_be_submitted_from_the_projects_folder(job):
    (job.folder / "finetune.sh").unlink()
    (job.folder / "scontrol").touch()
    status, said, asked = job("done")
    assert status == 2 and "submit the job from the project's folder" in said and not asked


def test_slurm_warns_in_time_and_may_queue_again():
    options = re.findall(r"^#SBATCH (\S+)$", (ROOT / "conf/slurm_finetune.sh").read_text(), re.M)
    assert {"--requeue", "--open-mode=append", "--ntasks-per-node=1"} < set(options)
    (before,) = [int(option.split("@")[1]) for option in options if option.startswith("--signal=TERM@")]
    assert before >= 120
