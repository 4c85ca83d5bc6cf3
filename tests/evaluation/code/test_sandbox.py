"""Programs that are right, wrong and hostile, in the sandbox."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from hf_llm.core.errors import UserError
from hf_llm.evaluation.code import sandbox as sandbox_module
from hf_llm.evaluation.code.sandbox import Limits, ProgramResult, Sandbox, open_sandbox
from tests.evaluation.code.human_eval import DATA, read_problems

SQUARE = "def f(x):\n    return x * x"
TESTS = "assert f(2) == 4\nassert f(3) == 9"
LIMITS = Limits(seconds=3, cpu_seconds=1, memory_bytes=256 << 20, output_bytes=100_000)
FAST_PROBLEMS = 25

NOBODY = 65534
SUCCESS = '{"outcome": "passed", "detail": ""}'


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    try:
        return open_sandbox(LIMITS)
    except UserError as error:
        pytest.skip(str(error))


def run_probe(sandbox: Sandbox, expression: str) -> ProgramResult:
    """Evaluate an expression in the sandbox; the detail ends with its value or its error."""
    return sandbox.run_program(f"import os, socket\nraise Exception({expression})", "")


# ---- what programs come to


@pytest.mark.parametrize(
    ("program", "outcome", "detail"),
    [
        (SQUARE, "passed", ""),
        ("def f(x):\n    return x + x", "failed", "AssertionError"),
        ("def f(x)\n    return x", "error", "SyntaxError in the program"),
        ("def f(x):\n    return y", "error", "NameError in the tests"),
        ("def f(x):\n    return f(x)", "error", "RecursionError"),
        ("def f(x):\n    while True: pass", "timeout", "1 s"),
        ("import time\ntime.sleep(100)", "timeout", "3 s"),
        ("import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass", "error or timeout", ""),
        ("x = bytearray(1 << 32)", "memory", "MemoryError"),
        ("x = []\nwhile True: x.append('a' * 10_000_000)", "memory", "MemoryError"),
        ("while True: print('x' * 10_000)", "output", "100,000"),
        ("import os\nwhile True: os.write(2, b'x' * 10_000)", "output", "100,000"),
        ("input()", "error", "EOFError"),
        ("if __name__ == '__main__': raise Exception\n" + SQUARE, "passed", ""),
        ("from dataclasses import dataclass\n@dataclass\nclass A:\n    x: 'int'\n" + SQUARE, "passed", ""),
        ("raise Exception('\\ud800')", "error", "Exception"),
        ("\ud800", "error", "the program"),
    ],
)  # fmt: skip
def test_a_program_comes_to_its_outcome(sandbox, program, outcome, detail):
    result = sandbox.check_program(program, TESTS)
    assert result.outcome in outcome.split(" or ")  # a busy machine may reach the limit of the clock first
    assert detail in result.detail
    result.detail.encode()


def test_tests_see_what_the_program_defines(sandbox):
    program = "class Node:\n    def __init__(self, data): self.data = data\ndef f(node): return node.data"
    assert sandbox.check_program(program, "root = Node(5)\nassert f(root) == 5").outcome == "passed"


def test_the_order_of_a_set_is_the_same_in_every_run(sandbox):
    words = {run_probe(sandbox, "list(set('several words that a set holds'.split()))").detail for _ in range(3)}
    assert len(words) == 1


# ---- success that is not deserved

FORGERIES = {
    "prints it": f"print('{SUCCESS}')",
    "prints it everywhere": f"""
import os
for descriptor in range(64):
    try: os.write(descriptor, b'\\n{SUCCESS}\\n')
    except OSError: pass
""",
    "os._exit": "import os\nos._exit(0)",
    "sys.exit": "import sys\nsys.exit(0)",
    "atexit": "import atexit, os\natexit.register(os._exit, 0)",
    "exit in a call": "import os\ndef f(x): os._exit(0)",
    "SystemExit in a call": "def f(x): raise SystemExit(0)",
    "exec replaced": "import builtins\nbuiltins.exec = lambda *a: None\nbuiltins.compile = lambda *a: None",
    "everything replaced": """
import builtins, os, json
for name in list(vars(builtins)):
    if not name.startswith('_'): setattr(builtins, name, lambda *a, **k: True)
os.write = os._exit = json.dumps = lambda *a, **k: True
""",
    "AssertionError replaced": "import builtins\nbuiltins.AssertionError = builtins.BaseException = Warning",
    "check replaced": "def check(f): pass\nclass f: pass",
    "equal to everything": """
class Anything:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
def f(x): return Anything()
""",
    "secret from a frame": f"""
import os, sys
frame = sys._getframe()
while 'nonce' not in frame.f_locals: frame = frame.f_back
line = '\\n' + frame.f_locals['nonce'] + '{SUCCESS}' + '\\n'
os.write(frame.f_locals['report'], line.encode())
os._exit(0)
""",
    "expected values from a frame": """
import re, sys
def f(x):
    frame = sys._getframe()
    while 'tests' not in frame.f_locals: frame = frame.f_back
    return int(re.search(rf'f[(]{x}[)] == (\\d+)', frame.f_locals['tests'])[1])
""",
    "assertions skipped by a trace": """
import sys
def skip(frame, event, argument):
    if frame.f_code.co_filename == '<tests>' and event == 'line' and frame.f_lineno == 1: frame.f_lineno = 3
    return skip
def f(x):
    return 4
frame = sys._getframe()
sys.settrace(skip)
""",
}  # fmt: skip


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_success_does_not_pass(sandbox, name):
    assert sandbox.check_program(FORGERIES[name], TESTS).outcome != "passed"


def test_a_program_that_knows_the_secret_is_told_by_the_control(sandbox):
    assert sandbox.run_program(FORGERIES["secret from a frame"], TESTS).outcome == "passed"
    assert sandbox.check_program(FORGERIES["secret from a frame"], TESTS).outcome == "forged"


def test_an_invalid_report_does_not_stop_us(sandbox):
    forged = FORGERIES["secret from a frame"].replace(SUCCESS, '{"outcome": ["passed"], "detail": 1}')
    assert sandbox.check_program(forged, TESTS).outcome == "error"


# ---- what a program cannot reach


@pytest.mark.parametrize(
    "expression",
    [
        "open('/etc/shadow').read()",
        "open('/etc/passwd').read()",
        f"open({__file__!r}).read()",
        "os.listdir('/home')",
        "os.listdir('/root')",
        "os.listdir('/tmp')",
        "open('/new', 'w')",
        "open('/usr/new', 'w')",
        "open('/dev/new', 'w')",
        "open('/dev/shm/new', 'w')",
        "open('/proc/sys/kernel/hostname', 'w')",
        "socket.create_connection(('127.0.0.1', PORT), timeout=2)",
        "socket.gethostbyname('example.org')",
        "os.setuid(0)",
        "os.chroot('/box')",
        "os.unshare(os.CLONE_NEWUSER) if hasattr(os, 'unshare') else __import__('ctypes').CDLL(None).unshare(1 << 28) "
        "and os.unshare",
        "__import__('subprocess').run(['mount', '-t', 'tmpfs', 'x', '/box'], check=True)",
        "__import__('resource').setrlimit(__import__('resource').RLIMIT_AS, (-1, -1))",
        "[open(f'/box/{i}', 'wb').write(b'x' * (4 << 20)) for i in range(8)]",
        "open('/box/large', 'wb').write(b'x' * (20 << 20))",
    ],
)
def test_what_is_outside_is_out_of_reach(sandbox, expression):
    with socket.create_server(("127.0.0.1", 0)) as server:
        result = run_probe(sandbox, expression.replace("PORT", str(server.getsockname()[1])))
    assert result.outcome == "error"
    assert not result.detail.startswith("Exception in"), result.detail  # that is the expression's value


def test_the_environment_is_empty(sandbox, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    seen = run_probe(sandbox, "dict(os.environ), open('/proc/1/environ').read(), open('/proc/self/environ').read()")
    assert "PATH" in seen.detail and "hf_secret" not in seen.detail


def test_the_user_is_nobody(sandbox):
    assert f"({NOBODY}, {NOBODY}, [])" in run_probe(sandbox, "os.getuid(), os.getgid(), os.getgroups()").detail


def test_no_file_of_ours_is_open(sandbox, tmp_path):
    with open(tmp_path / "secret", "w") as file:
        os.set_inheritable(file.fileno(), True)
        links = "[os.path.realpath(f'/proc/{p}/fd/{d}') for p in (1, 'self') for d in os.listdir(f'/proc/{p}/fd')]"
        seen = run_probe(sandbox, f"[link for link in {links} if 'pipe' not in link]")
    assert "/dev/null" in seen.detail and "secret" not in seen.detail


def test_killing_everybody_reaches_nobody(sandbox):
    kill = "import os\nfor pid in (1, os.getppid()):\n    os.kill(pid, 9)\ntry: os.kill(-1, 9)\nexcept OSError: pass\n"
    assert sandbox.check_program(kill + SQUARE, TESTS).outcome == "passed"


def list_nobodys_processes() -> set[int]:
    """The processes of a name that the programs below give themselves."""
    return {p.pid for p in psutil.process_iter(["cmdline"]) if "a-stray-process" in (p.info["cmdline"] or [])}


STRAYS = """
import os, subprocess, sys
for _ in range(5):
    subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)', 'a-stray-process'], start_new_session=True)
"""


@pytest.mark.parametrize("end", ["def f(x): return x * x", "import time\ntime.sleep(100)"])
def test_processes_end_with_their_program(sandbox, end):
    sandbox.check_program(STRAYS + end, TESTS)
    deadline = time.monotonic() + 10
    while list_nobodys_processes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list_nobodys_processes() == set()


FORK_BOMB = """
import os, time
forks = 0
for _ in range(300):
    try:
        if os.fork() == 0: time.sleep(100)
    except OSError: continue
    forks += 1
raise Exception(f'{forks} forks')
"""


def count_forks(result: ProgramResult) -> int:
    match = re.search(r"(\d+) forks", result.detail)
    assert match, result
    return int(match[1])


def test_a_fork_bomb_is_limited_and_leaves_the_others_alone(sandbox):
    patient = FORK_BOMB.replace("raise", "time.sleep(2)\nraise")
    programs = [(patient, ""), (SQUARE + "\nimport subprocess, time\ntime.sleep(1)\nsubprocess.run('true')", TESTS)]
    bomb, other = sandbox.check_programs(programs)
    assert bomb.outcome == "error" and 1 < count_forks(bomb) < LIMITS.processes
    assert other.outcome == "passed"


def test_programs_end_where_we_are_killed(tmp_path):
    code = f"""
from hf_llm.evaluation.code.sandbox import open_sandbox
sandbox = open_sandbox()
print('started', flush=True)
sandbox.run_program({STRAYS + "import time" + chr(10) + "time.sleep(100)"!r}, '')
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "started\n"
    deadline = time.monotonic() + 20
    while not list_nobodys_processes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list_nobodys_processes()
    process.send_signal(signal.SIGKILL)
    process.wait()
    while list_nobodys_processes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list_nobodys_processes() == set()


# ---- hosts


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_an_ordinary_user_has_the_same_sandbox(sandbox):
    def check() -> None:
        ordinary = open_sandbox(LIMITS)
        assert not any("setpriv" in part for part in ordinary.command)
        assert ordinary.check_program(SQUARE, TESTS).outcome == "passed"
        assert f"({NOBODY}, {NOBODY}" in run_probe(ordinary, "os.getuid(), os.getgid()").detail
        assert "FileNotFoundError" in run_probe(ordinary, "open('/etc/passwd').read()").detail
        assert "Read-only" in run_probe(ordinary, "open('/new', 'w')").detail
        assert 1 < count_forks(ordinary.run_program(FORK_BOMB, "")) < LIMITS.processes
        assert ordinary.check_program("import os\nos._exit(0)", TESTS).outcome == "error"

    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(12345, 12345, 12345)
            os.setresuid(12345, 12345, 12345)
            check()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("missing", ["bwrap", "setpriv"])
def test_a_missing_command_is_named_with_its_package(tmp_path, monkeypatch, missing):
    if missing == "setpriv" and os.geteuid() != 0:
        pytest.skip("only root needs it")
    for command in {"bwrap", "setpriv"} - {missing}:
        (tmp_path / command).symlink_to(f"/usr/bin/{command}")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=rf"{missing}.* PATH.*install") as refused:
        open_sandbox()
    assert "never run without it" in str(refused.value)


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("bwrap: setting up uid map: Permission denied", "user.max_user_namespaces"),
        ("bwrap: No permissions to create new namespace", "apparmor_restrict_unprivileged_userns"),
        ("bwrap: Unknown option --disable-userns", "0.8 or newer"),
    ],
)
def test_a_bubblewrap_that_does_not_work_here_is_refused_with_what_it_said(monkeypatch, said, remedy):
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "bwrap"
        script.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
        script.chmod(0o755)
        Path(folder).chmod(0o755)  # nobody has to reach it
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        with pytest.raises(UserError, match="does not start on this host") as refused:
            open_sandbox()
    assert said in str(refused.value) and remedy in str(refused.value)


def test_an_interpreter_outside_of_usr_comes_with_its_folder():
    found = dict(sandbox_module.list_interpreters())
    own = Path(sys.executable).resolve()
    if own.is_relative_to("/usr"):
        assert found[str(own)] is None
    else:
        assert found[str(own)] == Path(sys.base_prefix).resolve()
        assert list(found)[-1] == str(own)


def test_the_version_that_runs_is_known(sandbox):
    assert re.fullmatch(r"3\.\d+\.\d+", sandbox.python_version)
    assert sandbox.python_version in run_probe(sandbox, "__import__('platform').python_version()").detail


# ---- HumanEval's own solutions


def check_solutions(sandbox: Sandbox, problems: list[dict], solution: str) -> dict[str, str]:
    """The outcome of each problem's solution; `solution` is a format of its text."""
    programs = []
    for problem in problems:
        program = problem["prompt"] + solution.format(problem["canonical_solution"])
        programs.append((program, f"{problem['test']}\ncheck({problem['entry_point']})"))
    results = sandbox.check_programs(programs)
    return {problem["task_id"]: result.outcome for problem, result in zip(problems, results, strict=True)}


SPREAD = slice(None, None, 164 // FAST_PROBLEMS)


@pytest.mark.skipif(not DATA, reason="HF_LLM_DATA is not set")
@pytest.mark.parametrize("part", [SPREAD, pytest.param(slice(None), marks=pytest.mark.slow)], ids=["sample", "all"])
def test_human_evals_solutions_pass_and_others_fail(part):
    sandbox = open_sandbox()
    problems = read_problems()[part]
    assert set(check_solutions(sandbox, problems, "{}").values()) == {"passed"}
    without_value = check_solutions(sandbox, problems, "    return None\n{}")
    assert set(without_value.values()) <= {"failed", "error"}, without_value
