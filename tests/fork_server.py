"""A program that stands in for `python -m module` in the tests, and costs no imports.

Importing torch, transformers and TRL takes several seconds, and the tests start hundreds of programs. So a server
imports them once, and every program is a fork of it. The server only imports: a process that has computed with torch
has threads, which a fork would not have.

`python()` gives the path of a small program to start in place of `sys.executable`. It hands its arguments, folder,
environment and standard streams to the server, waits for the fork, and ends as the fork has ended: with its exit code,
or by its signal. A signal sent to it reaches the fork, and when it is killed the fork and its children are killed.
Whatever a fork could not do as a new interpreter would is done by a new interpreter in its place:

- options other than `-m`, such as `-c`;
- an environment that differs from the server's in variables that libraries read when they are imported;
- systems other than Linux.

All forks order their sets alike, as one interpreter does. A test that compares two programs byte by byte therefore
starts one of them with `sys.executable`.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
if str(ROOT) not in os.environ.get("PYTHONPATH", "").split(os.pathsep):  # for `-m tests.<module>`
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
AT_START = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
MAX_REQUEST_BYTES = 150_000
START_SECONDS = 120
READY = b"!"

# What the stages import before they work, and where they work.
PRELOADED = (
    "hf_llm",  # first, since it sets what other libraries read when they are imported
    "accelerate.commands.launch",
    "datatrove.pipeline.base",
    "datasets",
    "hf_llm.check",
    "hf_llm.data.corpus.build",
    "hf_llm.evaluate",
    "hf_llm.model.load",
    "hf_llm.monitoring.attach",
    "hf_llm.posttraining.build_trainer",
    "hf_llm.posttraining.dpo_trainer",
    "hf_llm.posttraining.group_trainer",
    "hf_llm.pretrain",
    "hf_llm.report",
    "hf_llm.run",
    "hf_llm.sft",
    "hf_llm.tokenization.checks",
    "hf_llm.tokenization.import_tokenizer",
    "hf_llm.tokenize_corpus",
    "hf_llm.train_tokenizer",
    "hf_llm.training.objectives",
    "hf_llm.training.train_and_save",
    "peft",
    "torch._dynamo",  # by the first optimizer
    "trl.trainer.dpo_trainer",
    "trl.trainer.grpo_trainer",
    "trl.trainer.reward_trainer",
    "trl.trainer.rloo_trainer",
    "trl.trainer.sft_trainer",
)

# Variables that no library reads while it is imported: those of hf_llm, of pytest and of the launchers.
READ_LATE_PREFIXES = ("HF_LLM_", "PYTEST_", "ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_", "TORCHELASTIC_")
READ_LATE = {
    "RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE",
    "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT", "TORCH_NCCL_ASYNC_ERROR_HANDLING", "DS_ACCELERATOR",
    "TOKENIZERS_PARALLELISM", "TORCHINDUCTOR_CACHE_DIR", "PWD", "OLDPWD", "SHLVL", "_",
}  # fmt: skip

PROGRAM = """#!{python} -IS
import json, os, signal, socket, sys

def become_an_interpreter():
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])

arguments = [argument for argument in sys.argv[1:] if argument != "-u"]
if arguments[:1] != ["-m"]:
    become_an_interpreter()
request = dict(arguments=arguments[1:], folder=os.getcwd(), environment=dict(os.environ))
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
    connection.connect({address!r})
    socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
    pid = int(connection.recv(64))
    if not pid:
        become_an_interpreter()
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: os.kill(pid, number))
    code = int(connection.recv(64))
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


@functools.cache
def python() -> str:
    """The path of the program that stands in for `sys.executable`; the server is started by the first call."""
    if sys.platform != "linux":
        return sys.executable
    folder = Path(tempfile.mkdtemp(prefix="hf_llm-forks-"))
    atexit.register(shutil.rmtree, folder)
    program, address = folder / "python", folder / "socket"
    program.write_text(PROGRAM.format(python=sys.executable, address=str(address)), encoding="utf-8")
    program.chmod(0o755)
    said = folder / "imports.txt"
    with open(said, "wb") as file:
        server = subprocess.Popen(
            [sys.executable, __file__, str(address), str(program)],
            env=AT_START,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            start_new_session=True,
        )
    atexit.register(stop_server, server)
    ready, _, _ = select.select([server.stdout], [], [], START_SECONDS)
    assert ready and server.stdout.read(1) == READY, said.read_text(encoding="utf-8")
    return str(program)


def environment(**variables: str) -> dict[str, str]:
    """The environment of a program that a test starts: offline, with `variables`.

    The rest is as it was when the tests began, but for hf_llm's own variables: libraries set variables while other
    tests use them in this process.
    """
    own = {name: value for name, value in os.environ.items() if name.startswith("HF_LLM_")}
    return {name: AT_START[name] for name in AT_START if not name.startswith("HF_LLM_")} | own | variables


def stop_server(server: subprocess.Popen) -> None:
    server.stdin.close()  # the server's sign to end
    server.wait(START_SECONDS)


def serve(address: str, program: str) -> bool:
    """Fork a program for every connection. Returns True in every fork, and False when standard input is closed."""
    before = dict(os.environ)
    for name in PRELOADED:
        importlib.import_module(name)
    assert list_threads() <= {"python", "jemalloc_bg_thd"}, list_threads()  # a fork would not have them
    set_by_imports = {name: value for name, value in os.environ.items() if before.get(name) != value}
    gc.collect()
    gc.freeze()  # Trainer collects garbage before it trains: half a second over all that was imported

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
        os.write(1, READY)
        while True:
            ready, _, _ = select.select([0, listener], [], [])
            if 0 in ready:
                return False
            connection, _ = listener.accept()
            message, streams, _, _ = socket.recv_fds(connection, MAX_REQUEST_BYTES, 3)
            request = json.loads(message)
            if not is_forkable(request["environment"], before, set_by_imports):
                connection.send(b"0")
            elif os.fork() == 0:
                listener.close()
                keep_fork(connection, streams)
                connection.close()
                become(request, streams, set_by_imports, program)
                return True
            for stream in streams:
                os.close(stream)
            connection.close()


def list_threads() -> set[str]:
    """The names of this process's threads. Of the allocator's own one (Arrow's) it takes care itself in a fork."""
    return {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}


def is_forkable(asked: dict[str, str], before: dict[str, str], set_by_imports: dict[str, str]) -> bool:
    """Whether the environment `asked` differs from the server's only in what is not read while libraries load."""
    for name in asked.keys() | before.keys():
        if name in READ_LATE or name.startswith(READ_LATE_PREFIXES):
            continue
        if asked.get(name) not in (before.get(name), set_by_imports.get(name)):
            print(f"a new interpreter, for {name} is {asked.get(name)!r}", file=sys.stderr, flush=True)
            return False
    return True


def keep_fork(connection: socket.socket, streams: list[int]) -> None:
    """Return in a fork of this process; here wait for its end, tell it, and exit. Without the client it is killed."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        os.setsid()
        return
    for stream in streams:
        os.close(stream)
    connection.send(str(pid).encode())
    ended, _, _ = select.select([os.pidfd_open(pid), connection], [], [])
    if connection in ended:
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            os.kill(pid, signal.SIGKILL)  # it is not a leader yet
    _, status = os.waitpid(pid, 0)
    if connection not in ended:
        connection.send(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def become(request: dict[str, Any], streams: list[int], set_by_imports: dict[str, str], program: str) -> None:
    """Give this process the streams, the folder, the environment and the arguments of the request."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.modules["numpy"].random.seed()  # torch begins with the same seed in every program; numpy does not
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(set_by_imports | request["environment"])
    sys.executable = program  # what the program starts is a fork as well
    sys.path[0] = request["folder"]
    sys.argv[:] = request["arguments"]


if __name__ == "__main__":
    if serve(*sys.argv[1:]):
        module = sys.argv[0]
        sys.modules.pop(module, None)  # it runs as a program now, as if it had not been imported
        runpy.run_module(module, run_name="__main__", alter_sys=True)
