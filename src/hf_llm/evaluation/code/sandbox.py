"""Run programs that a model wrote, each in a sandbox of its own, with the tests that it has to pass.

A sandbox is a process under bubblewrap (https://github.com/containers/bubblewrap) with new user, process, network, IPC,
mount, host name and control group namespaces. What holds, for a program that does its worst:

- It sees /usr (read only), its own /proc, a /dev without disks, and an empty folder of `disk_bytes` in memory. No home
  folder, no /etc, no environment, no other process. It cannot write anywhere else.
- It has no network, not even the host's loopback.
- It runs as nobody, without capabilities, and gains none: setuid programs and further user namespaces are off. Where
  we are root, it is nobody on the host too (`setpriv`); else it is nobody inside, and on the host the user who runs us.
- The kernel limits the CPU time and memory of each process, the number of processes and threads, open files and the
  size of a file; we limit wall-clock time and output. When a program ends, is ended, or we die, all its processes are
  killed.

What does not hold: the limits bound the host's memory only loosely, by `processes` times `memory_bytes` (the kernel is
told to end such a process before any other); /usr can be read, whatever is there; a flaw of the kernel is a way out.

Success cannot be forged by printing something or by ending early: it is reported on a channel of its own, with a
secret. But the program shares the interpreter of its tests, so one that is made to cheat can search for the secret,
skip the tests, or return objects that are equal to everything. `check_program` therefore runs what passed once more,
with tests that no right program passes. A program that guesses which of the two it is in still passes, once in four
times.
"""

import json
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from hf_llm.core.errors import UserError
from hf_llm.core.surrogates import replace_lone_surrogates
from hf_llm.evaluation.code.control_tests import make_test_pair
from hf_llm.hardware.cpu import usable_cores

Outcome = Literal["passed", "failed", "error", "timeout", "memory", "output", "forged"]

RUNNER = Path(__file__).with_name("sandboxed_runner.py")
NOBODY = "65534"  # uid and gid
OLDEST_PYTHON = (3, 9)  # in which a program may write list[int]
START_SECONDS = 60  # until the sandbox has started; what runs in it has not begun to count yet
START_ATTEMPTS = 3
SECONDS_BETWEEN_ATTEMPTS = 1.0
CHUNK_BYTES = 65536
CPU_TIME_EXIT_CODE = 128 + 24  # ended by SIGXCPU
LIBRARY_FOLDERS = ("bin", "lib", "lib32", "lib64")  # of the root folder; links into /usr on most systems

INSTALL_BUBBLEWRAP = "install it (apt install bubblewrap, dnf install bubblewrap; 0.8 or newer)"
NEVER_WITHOUT = "Generated programs are never run without it; leave out humaneval and mbpp where it cannot be had."


@dataclass(frozen=True)
class Limits:
    """What a program may use."""

    seconds: float = 10.0
    """Of wall-clock time, from when the sandbox has started."""
    cpu_seconds: int = 5
    """Of each process."""
    memory_bytes: int = 1 << 30
    """Address space of each process."""
    processes: int = 16
    """At once, threads included."""
    open_files: int = 64
    file_bytes: int = 16 << 20
    """Of each file, in memory ones included."""
    disk_bytes: int = 16 << 20
    """Of the folder that it may write to."""
    output_bytes: int = 1 << 20
    """Written to standard output and standard error together."""

    def kernel_limits(self) -> dict[str, int]:
        """Return those that `resource.setrlimit` sets, by its names."""
        return {
            "RLIMIT_AS": self.memory_bytes,
            "RLIMIT_CPU": self.cpu_seconds,
            "RLIMIT_NPROC": self.processes,
            "RLIMIT_NOFILE": self.open_files,
            "RLIMIT_FSIZE": self.file_bytes,
            "RLIMIT_CORE": 0,
        }


@dataclass(frozen=True)
class ProgramResult:
    """What a program came to with its tests."""

    outcome: Outcome
    """`passed`; `failed` an assertion of the tests; `error`: another exception, or an end before the tests were over;
    `timeout`, `memory` or `output`: a limit; `forged`: it also passes tests that no right program passes."""
    detail: str = ""
    """The error, or the limit."""


class SandboxError(Exception):
    """The sandbox itself did not start; the message is what its commands said."""


def open_sandbox(limits: Limits | None = None) -> "Sandbox":
    """Return a sandbox that has run a program.

    Raises UserError where bubblewrap is missing or this host does not let it work, with what to do about it.
    """
    if sys.platform != "linux":
        raise UserError(f"the sandbox for generated programs needs Linux, and this is {sys.platform}. {NEVER_WITHOUT}")
    bubblewrap = shutil.which("bwrap")
    if bubblewrap is None:
        raise UserError(
            "the sandbox for generated programs needs bubblewrap, and there is no bwrap on the PATH: "
            f"{INSTALL_BUBBLEWRAP}. {NEVER_WITHOUT}"
        )
    privileges = []
    if os.geteuid() == 0:
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            raise UserError(
                "the sandbox for generated programs needs setpriv (of util-linux) where it is started by root, and "
                f"there is none on the PATH: install it, or run as another user. {NEVER_WITHOUT}"
            )
        privileges = [setpriv, "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--no-new-privs"]

    errors = []
    for python, folder in list_interpreters():
        command = [*privileges, bubblewrap, *bubblewrap_arguments(folder, limits or Limits()), python]
        sandbox = Sandbox(python, command, limits or Limits())
        try:
            return replace(sandbox, python_version=sandbox.probe())
        except SandboxError as error:
            errors.append(f"{python}: {error}")
    raise UserError(describe_failed_probes(errors))


def list_interpreters() -> Iterator[tuple[str, Path | None]]:
    """Yield interpreters for the sandbox, the best first, each with the folder that has to be made visible for it.

    First the one that runs this program, where it is in /usr; then the system's; then again the one that runs this
    program, from the folder of its installation (that of a virtual environment is where its Python came from). Only
    the standard library is imported there.
    """
    own = Path(sys.executable).resolve()
    own_is_in_usr = own.is_relative_to("/usr")
    if own_is_in_usr:
        yield str(own), None
    for path in (Path("/usr/bin/python3"), Path("/usr/local/bin/python3")):
        system = path.resolve()
        if system != own and system.is_relative_to("/usr") and system.exists():
            yield str(system), None
    if not own_is_in_usr:
        yield str(own), Path(sys.base_prefix).resolve()


def bubblewrap_arguments(folder: Path | None, limits: Limits) -> list[str]:
    """Return the arguments of bwrap before the command; `folder` is made visible besides /usr."""
    arguments = [
        *("--unshare-all", "--unshare-user", "--disable-userns", "--cap-drop", "ALL"),
        *("--uid", NOBODY, "--gid", NOBODY, "--hostname", "sandbox"),
        *("--die-with-parent", "--new-session"),
        # Fixed, so that a program that goes through a set goes the same way every time.
        *("--clearenv", "--setenv", "PATH", "/usr/bin", "--setenv", "HOME", "/box", "--setenv", "PYTHONHASHSEED", "0"),
        *("--ro-bind", "/usr", "/usr"),
    ]
    for name in LIBRARY_FOLDERS:
        path = Path("/", name)
        if path.is_symlink():
            arguments += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            arguments += ["--ro-bind", str(path), str(path)]
    if folder is not None:
        arguments += ["--ro-bind", str(folder), str(folder)]
    return [
        *arguments,
        *("--proc", "/proc", "--dev", "/dev"),
        *("--size", str(limits.disk_bytes), "--tmpfs", "/box", "--chdir", "/box"),
        # Both are file systems in memory without a limit of their own, and the program's to write.
        *("--remount-ro", "/dev", "--remount-ro", "/"),
    ]


def describe_failed_probes(errors: list[str]) -> str:
    """Say that no interpreter ran in the sandbox, and what may help."""
    lines = ["the sandbox for generated programs does not start on this host:", *(f"  {error}" for error in errors)]
    text = " ".join(errors)
    if "disable-userns" in text:
        lines.append(f"This bubblewrap is too old: {INSTALL_BUBBLEWRAP}.")
    elif "amespace" in text or "uid map" in text or "not permitted" in text or "loopback" in text:
        lines.append(
            "User namespaces are forbidden here. Allow them: sysctl kernel.unprivileged_userns_clone=1 (Debian), "
            "kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu), user.max_user_namespaces above 0. In a "
            "container, start it with --security-opt seccomp=unconfined, or run the evaluation outside of it."
        )
    lines.append(NEVER_WITHOUT)
    return "\n".join(lines)


@dataclass(frozen=True)
class Sandbox:
    """A way to run programs, each in a sandbox of its own; `open_sandbox` makes one that works."""

    python: str
    """The interpreter inside."""
    command: list[str]
    """What runs it there: setpriv where we are root, bwrap, the interpreter."""
    limits: Limits
    python_version: str = ""
    """Of the interpreter inside, `3.11.2`."""

    def probe(self) -> str:
        """Run a program that passes its tests, and return the version of Python. Raises SandboxError."""
        run = SandboxRun(self, "answer = 42", "assert answer == 42")
        result = run.finish()
        if result.outcome != "passed":
            raise SandboxError(f"a program that should pass came to {result.outcome}: {result.detail}")
        version = tuple(map(int, run.python_version.split(".")))
        if version < OLDEST_PYTHON:
            oldest = ".".join(map(str, OLDEST_PYTHON))
            raise SandboxError(f"it is Python {run.python_version}, and programs need {oldest} or newer")
        return run.python_version

    def run_program(self, program: str, tests: str) -> ProgramResult:
        """Run a program and then its tests, which see its names. Raises UserError where the sandbox does not start
        after several attempts, as on a host that has no memory left."""
        for attempt in range(1, START_ATTEMPTS + 1):
            try:
                return SandboxRun(self, program, tests).finish()
            except SandboxError as error:
                if attempt == START_ATTEMPTS:
                    raise UserError(
                        f"the sandbox for generated programs has stopped working: {error}\n  What is scored is kept; "
                        "the same command resumes there."
                    ) from error
                time.sleep(SECONDS_BETWEEN_ATTEMPTS)
        raise AssertionError("the last attempt returns or raises")

    def check_program(self, program: str, tests: str) -> ProgramResult:
        """Run a program with its tests as `run_program` does, and if it passes with those that no right program passes:
        one that passes these too is `forged`."""
        tests, control = make_test_pair(tests)
        result = self.run_program(program, tests)
        if result.outcome == "passed" and control is not None:
            if self.run_program(program, control).outcome == "passed":
                return ProgramResult("forged", "it also passes tests that no right program passes")
        return result

    def check_programs(self, programs: Sequence[tuple[str, str]]) -> list[ProgramResult]:
        """Check programs, each given with its tests, several at once: one for each core of this process."""
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of a launch, on this host
        workers = max(1, usable_cores() // processes)
        with ThreadPoolExecutor(workers, "sandbox") as pool:
            return list(pool.map(lambda pair: self.check_program(*pair), programs))


class SandboxRun:
    """One program in one sandbox."""

    def __init__(self, sandbox: Sandbox, program: str, tests: str):
        self.sandbox = sandbox
        self.limits = sandbox.limits
        self.program = program
        self.tests = tests
        self.nonce = secrets.token_hex(16)
        self.python_version = ""
        """Of the interpreter inside; empty until that has started."""
        self.output = b""
        self.reports = b""

    def finish(self) -> ProgramResult:
        """Run the program and return what it came to. Raises SandboxError where it was not started."""
        reader, writer = os.pipe()
        try:
            try:
                process = self.start(writer)
            finally:
                os.close(writer)
            with process:
                try:
                    return self.follow(process, reader, self.describe_job(writer))
                finally:
                    process.kill()  # and with it everything in the sandbox
        finally:
            os.close(reader)

    def start(self, report_writer: int) -> "subprocess.Popen[bytes]":
        """Start the sandbox and the runner in it: without an environment, since bwrap's own can be read inside."""
        runner = RUNNER.read_text(encoding="utf-8")
        return subprocess.Popen(
            [*self.sandbox.command, "-s", "-S", "-B", "-c", runner],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(report_writer,),
            env={},
            cwd="/",
        )

    def describe_job(self, report_writer: int) -> bytes:
        """Return what the runner reads."""
        job = {
            "program": self.program,
            "tests": self.tests,
            "limits": self.limits.kernel_limits(),
            "report": report_writer,
            "nonce": self.nonce,
        }
        return json.dumps(job).encode()

    def follow(self, process: "subprocess.Popen[bytes]", report_reader: int, job: bytes) -> ProgramResult:
        """Hand the job over, and read what is written until there is a result, a limit is exceeded or all has ended."""
        assert process.stdin is not None and process.stdout is not None
        deadline = time.monotonic() + START_SECONDS
        os.set_blocking(process.stdin.fileno(), False)
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdin, selectors.EVENT_WRITE)
            selector.register(process.stdout, selectors.EVENT_READ)
            selector.register(report_reader, selectors.EVENT_READ)
            while len(selector.get_map()):
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return self.describe_timeout()
                for key, _ in selector.select(remaining):
                    if key.fileobj is process.stdin:
                        job = self.write_job(key.fd, job)
                        if not job:
                            selector.unregister(process.stdin)
                            process.stdin.close()
                        continue
                    data = os.read(key.fd, CHUNK_BYTES)
                    if not data:
                        selector.unregister(key.fileobj)
                    elif key.fileobj is process.stdout:
                        self.output += data
                    else:
                        was_started = bool(self.python_version)
                        result = self.read_report(data)
                        if result is not None:
                            return result
                        if self.python_version and not was_started:
                            deadline = time.monotonic() + self.limits.seconds
                if len(self.output) + len(self.reports) > self.limits.output_bytes:
                    return ProgramResult("output", f"it wrote more than {self.limits.output_bytes:,} bytes")
        try:
            return self.describe_end(process.wait(max(0.0, deadline - time.monotonic())))
        except subprocess.TimeoutExpired:
            return self.describe_timeout()

    def write_job(self, descriptor: int, job: bytes) -> bytes:
        """Write as much of the job as can be written now, and return the rest; none where nobody reads it any more."""
        try:
            return job[os.write(descriptor, job) :]
        except BrokenPipeError:
            return b""

    def read_report(self, data: bytes) -> ProgramResult | None:
        """Take note of what was written to the channel of reports; return the result once it is there.

        The program may write to it too: only lines with the nonce count.
        """
        self.reports += data
        for line in self.reports.split(b"\n")[:-1]:
            if not line.startswith(self.nonce.encode()):
                continue
            try:
                report = json.loads(line[len(self.nonce) :])
                outcome, detail = report["outcome"], replace_lone_surrogates(str(report["detail"]))
            except (ValueError, KeyError, TypeError):
                continue
            if outcome == "started" and not self.python_version:
                self.python_version = detail
            elif outcome in get_args(Outcome):
                return ProgramResult(outcome, detail)
        return None

    def describe_timeout(self) -> ProgramResult:
        """Return the result of a program that was ended by us. Raises SandboxError where it was not started."""
        if not self.python_version:
            raise SandboxError(f"it did not start within {START_SECONDS} s")
        return ProgramResult("timeout", f"it ran longer than {self.limits.seconds:g} s")

    def describe_end(self, exit_code: int) -> ProgramResult:
        """Return the result of a program that ended without one. Raises SandboxError where it was not started."""
        if not self.python_version:
            said = self.output.decode(errors="replace").strip().splitlines()
            raise SandboxError(said[-1] if said else f"exit code {exit_code}")
        if exit_code == CPU_TIME_EXIT_CODE:
            return ProgramResult("timeout", f"it computed longer than {self.limits.cpu_seconds} s")
        how = f"exit code {exit_code}"
        if exit_code > 128:
            how = f"ended by {signal.Signals(exit_code - 128).name}"
        return ProgramResult("error", f"it ended before its tests were over: {how}")
