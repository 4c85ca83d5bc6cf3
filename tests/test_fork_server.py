"""A fork of the server is, for the test that starts it, the program that a new interpreter would be."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.fork_server import environment, python

# Everything a program is given and gives; the last argument says how it ends.
PROGRAM = """
import atexit, json, os, sys
atexit.register(print, "at exit")
print(json.dumps([__name__, sys.argv[1:], os.getcwd(), sys.path[0], os.environ.get("HF_LLM_TEST"), sys.stdin.read()]))
print("an error", file=sys.stderr)
ending = sys.argv[-1]
if ending == "signal":
    sys.stdout.flush()
    os.kill(os.getpid(), 11)
if ending == "exception":
    raise ValueError("an exception")
sys.exit(json.loads(ending))
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="everywhere else the tests start new interpreters")


def run(program: str, *arguments: str, folder, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [program, "-m", "program", *arguments],
        cwd=folder,
        env=environment(**variables),
        input="typed",
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("ending", ["0", "3", '"a message"', "exception", "signal"])
def test_a_fork_gets_gives_and_ends_as_a_new_interpreter_does(tmp_path, ending):
    (tmp_path / "program.py").write_text(PROGRAM)
    forked, new = (
        run(program, "a b", ending, folder=tmp_path, HF_LLM_TEST="x") for program in (python(), sys.executable)
    )
    assert (forked.returncode, forked.stdout) == (new.returncode, new.stdout)
    assert "typed" in new.stdout
    assert forked.stderr.splitlines()[0] == new.stderr.splitlines()[0] == "an error"
    assert forked.stderr.splitlines()[-1] == new.stderr.splitlines()[-1]


def test_what_libraries_read_when_they_are_imported_makes_a_new_interpreter(tmp_path):
    (tmp_path / "program.py").write_text("from huggingface_hub import constants\nprint(constants.ENDPOINT)")
    done = run(python(), folder=tmp_path, HF_ENDPOINT="http://127.0.0.1:1")
    assert (done.returncode, done.stdout) == (0, "http://127.0.0.1:1\n"), done.stderr


def test_a_fork_is_killed_with_the_program_that_asked_for_it(tmp_path):
    (tmp_path / "program.py").write_text("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)")
    process = subprocess.Popen(
        [python(), "-m", "program"], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True
    )
    pid = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)  # the pipe ends with the fork, which holds its other end
    for _ in range(1000):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    raise AssertionError("the fork is still there")
