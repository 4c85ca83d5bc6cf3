"""The data engine on Ray and Slurm makes the bytes it makes here."""

import json
import os
import sys
from pathlib import Path

import pytest

from hf_llm.core.errors import UserError
from hf_llm.core.manifest import file_digests
from hf_llm.data.corpus.build import make_corpus
from hf_llm.data.corpus.config import Cluster, Corpus, Source
from hf_llm.data.corpus.executors import Executor
from hf_llm.data.corpus.task_runner import run_tasks

# What a Slurm login node has, as far as datatrove asks: `sbatch` runs the tasks of an array one after the other.
SBATCH = """#!{python}
import os, re, subprocess, sys
script = sys.argv[-1]
text = open(script).read()
open("{folder}/submitted.txt", "a").write(text)
first, last = re.search(r"--array=(\\d+)-(\\d+)", text).groups()
body = open("{folder}/body.sh", "w")
body.write(text)
body.close()
offset = sys.argv[1].rpartition("=")[2] if "RUN_OFFSET" in sys.argv[1] else "0"
fixed = dict(SLURM_NODELIST="localhost", SLURM_JOB_ID="7", RUN_OFFSET=offset)
log = open("{folder}/tasks.log", "a")
for number in range(int(first), int(last) + 1):
    environment = dict(os.environ, SLURM_ARRAY_TASK_ID=str(number), **fixed)
    subprocess.run(["bash", "{folder}/body.sh"], env=environment, stdout=log, stderr=log)
print("Submitted batch job 7")
"""
SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do [[ $1 == -n ]] && shift; shift; done
exec "$@"
"""


def write_texts(folder):
    folder.mkdir()
    for number in range(3):
        rows = [{"text": f"a text of file {number} about the matter {i % 90}, told at some length"} for i in range(100)]
        (folder / f"{number}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return [Source(license="cc0-1.0", path=str(folder / f"{number}.jsonl")) for number in range(3)]


def made(folder, sources, **settings):
    folder.mkdir()
    make_corpus(Corpus(sources=sources, min_chars=20, **settings), folder, "key")
    return file_digests(folder)


@pytest.fixture
def login_node(tmp_path, monkeypatch):
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "sbatch").write_text(SBATCH.format(python=sys.executable, folder=tmp_path))
    (commands / "srun").write_text(SRUN)
    (commands / "squeue").write_text("#!/bin/sh\n")  # the job is over when sbatch returns
    (commands / "scontrol").write_text("#!/bin/sh\necho localhost\n")
    for command in commands.iterdir():
        command.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(commands), str(Path(sys.executable).parent), os.environ["PATH"]]))
    return tmp_path


def test_slurm_scripts_make_what_this_machine_makes(tmp_path, login_node):
    sources = write_texts(tmp_path / "texts")
    cluster = Cluster(partition="cpu", time="01:00:00", workers=2, env_command="export FROM_RECIPE=1")
    assert made(tmp_path / "slurm", sources, executor="slurm", cluster=cluster) == made(tmp_path / "local", sources)
    script = (tmp_path / "submitted.txt").read_text()
    for line in ("#SBATCH --partition=cpu", "#SBATCH --time=01:00:00", "--array=0-2%2", "export FROM_RECIPE=1"):
        assert line in script, line
    assert "srun" in script and "launch_pickled_pipeline" in script


def test_the_faults_of_tasks_come_back_from_slurm(tmp_path, login_node):
    sources = [*write_texts(tmp_path / "texts"), Source(license="mit", path=str(tmp_path / "chats.jsonl"))]
    (tmp_path / "chats.jsonl").write_text('{"messages": "hello"}')
    with pytest.raises(UserError, match=r"chats\.jsonl, line 1 has no column 'text'"):
        made(tmp_path / "slurm", sources, executor="slurm", cluster=Cluster(partition="cpu"))
    assert len(list((tmp_path / "slurm" / "work").glob("*.json"))) == 3  # the other parts are done and kept
    lost = {tmp_path / "lost.json": (1,)}
    with pytest.raises(UserError, match=r"ending: 1 of 1 tasks left no result .*corpus/work"):
        run_tasks(lost, os._exit, [1], "ending", Executor("slurm", Cluster(partition="cpu")))


def test_slurm_needs_a_partition_and_a_login_node(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"cluster: \{partition"):
        Corpus(sources=[Source(license="mit", path="a")], executor="slurm")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="this host has no `sbatch`"):
        run_tasks({tmp_path / "a.json": (1,)}, os._exit, [1], "t", Executor("slurm", Cluster(partition="cpu")))


def test_a_ray_cluster_of_two_workers_makes_what_this_machine_makes(tmp_path):
    ray = pytest.importorskip("ray")
    sources = write_texts(tmp_path / "texts")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        cluster = Cluster(workers=2, memory_gb=0.2)
        assert made(tmp_path / "ray", sources, executor="ray", cluster=cluster) == made(tmp_path / "local", sources)
    finally:
        ray.shutdown()
