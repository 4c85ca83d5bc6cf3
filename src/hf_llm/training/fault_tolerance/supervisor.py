"""A training started again after a fault, from outside its launcher, until it has finished or nothing moves any more.

Restarts inside the launchers (`--max_restarts` of torchrun and accelerate) do not work reliably in torch 2.13. From
outside, all of a launch is ended before the same command goes on from the newest checkpoint.
"""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil

from hf_llm.core.console import print_main
from hf_llm.core.errors import USER_ERROR_FILE, UserError
from hf_llm.core.manifest import write_json
from hf_llm.pipeline.status import FAILED, FINISHED, PREEMPTED, RUNNING, STATUS, now, read_status
from hf_llm.training.fault_tolerance.checkpoints import complete_checkpoints, step_of
from hf_llm.training.fault_tolerance.preemption import ECHO_SECONDS

REFUSED, GAVE_UP = "refused", "gave up"  # beside the ends that run_status.json knows
RECORD = "logs/supervisor.json"  # in the run's folder, where neither digests nor uploads look
MAX_RELAUNCHES, HANG_SECONDS = 3, 1800.0
POLL_SECONDS = 0.2
TORCHRUN_PATIENCE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
STOP_SECONDS = 600.0  # for what a launcher that was told to stop has left behind, and that is still saving
SILENT_SECONDS = 60.0  # after which a training on another machine counts as dead; it writes its status every five
CLOCK_SECONDS = 5.0  # by which the system's clock may have been set while a process ran
KILL_SECONDS = 60.0  # until a killed process must be gone, and until its port must be free

Child = subprocess.Popen | BaseProcess


@dataclass
class Attempt:
    """One launch: when, from which checkpoint's step to which (0 for none), and how it ended."""

    began: str
    from_step: int
    ended: str = ""
    exit_code: int | None = None  # the launcher's; negative: the signal that killed it
    step: int = 0  # the last one that the run has told of
    checkpoint: int = 0
    outcome: str = RUNNING
    reason: str = ""


class Supervisor:
    """Launches a training into `folder`, and again after a crash, a killed process or a hang.

    `launch` starts it, with these variables added to its environment. It is not started again once it has finished,
    was told to stop, or ended with a UserError, nor after `max_relaunches` launches that led to no new checkpoint.
    A run that has begun to train and makes no step for `hang_seconds` counts as hanging. Between two launches the
    last one's processes are killed, and TCP `port` has to be free. Every launch is in `logs/supervisor.json`.
    """

    def __init__(
        self,
        folder: Path,
        launch: Callable[[dict[str, str]], Child],
        max_relaunches: int = MAX_RELAUNCHES,
        hang_seconds: float = HANG_SECONDS,
        port: int | None = None,
    ):
        self.folder, self.launch, self.port = Path(folder), launch, port
        self.max_relaunches, self.hang_seconds = max_relaunches, hang_seconds
        self.user_error = self.folder.resolve() / "logs" / "user_error.txt"
        self.attempts: list[dict[str, Any]] = []  # of earlier supervisors too

    def run(self) -> int:
        """Supervise to the end. Returns 0 for finished, 128 + the signal for told to stop, 2 for a UserError, else 1.

        Raises UserError where another supervisor is at work, or a process cannot be ended.
        """
        self._claim()
        best, in_vain = newest_step(self.folder), 0
        with Told() as told:
            while (attempt := self._attempt(told)).outcome == FAILED:
                in_vain = 0 if attempt.checkpoint > best else in_vain + 1
                best = attempt.checkpoint  # fewer steps than before where a damaged one was set aside
                if in_vain > self.max_relaunches:
                    break
                print_main(f"supervisor: {attempt.reason}; {self._going_on(attempt, in_vain)}")
                self._record(RUNNING)
                wait_for_port(self.port)
        return self._end(attempt, told, in_vain)

    def _claim(self) -> None:
        """Note this process as the run's supervisor, and kill what a supervisor that was killed has left running."""
        path = self.folder / RECORD
        path.parent.mkdir(parents=True, exist_ok=True)
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"attempts": []}
        other = before.get("supervisor")
        if before.get("status") == RUNNING and other != whereabouts() and (is_alive(other) or self._goes_on_at(other)):
            raise UserError(
                f"{self.folder} is supervised already, by process {other['pid']} on {other['host']}; a second training "
                "would write beside the first. Wait for it, or stop it (kill it once, and it saves)"
            )
        self.attempts = before["attempts"]
        left = family(None, self.user_error)
        if left:
            print_main(f"supervisor: {len(left)} processes of an earlier launch still run; they are killed")
            kill(left)

    def _goes_on_at(self, other: dict[str, Any]) -> bool:
        """Whether a training supervised on another machine wrote its status a moment ago."""
        return other["host"] != socket.gethostname() and time.time_ns() - stamp(self.folder) < SILENT_SECONDS * 10**9

    def _attempt(self, told: "Told") -> Attempt:
        self.user_error.unlink(missing_ok=True)
        attempt = Attempt(now(), newest_step(self.folder))
        self.attempts.append(asdict(attempt))
        self._record(RUNNING)
        before = stamp(self.folder)
        # A torchrun that is told to stop kills its processes after this many seconds.
        patience = os.environ.get(TORCHRUN_PATIENCE, str(int(STOP_SECONDS)))
        child = self.launch({USER_ERROR_FILE: str(self.user_error), TORCHRUN_PATIENCE: patience})
        hung = self._watch(child, told, before)
        end = time.monotonic() + STOP_SECONDS
        while told.received and not told.insisted and time.monotonic() < end and family(child, self.user_error):
            time.sleep(POLL_SECONDS)
        if exit_code(child) is None:
            kill(family(child, self.user_error), child)
        kill(family(None, self.user_error))
        status = read_status(self.folder) if stamp(self.folder) != before else {}
        attempt.ended, attempt.exit_code = now(), exit_code(child)
        attempt.step, attempt.checkpoint = status.get("step", 0), newest_step(self.folder)
        attempt.outcome, attempt.reason = self._judge(attempt, status, told, hung)
        self.attempts[-1] = asdict(attempt)
        return attempt

    def _watch(self, child: Child, told: "Told", before: int) -> bool:
        """Wait for the launcher's end, and pass a signal on. True where the run hangs: then it still runs."""
        seen, since, training, passed_on = before, time.monotonic(), False, False
        while exit_code(child) is None and not told.insisted:
            time.sleep(POLL_SECONDS)
            if told.received and not passed_on:
                tell(child, self.user_error, told.received)
                passed_on = True
            if (latest := stamp(self.folder)) != seen:
                seen, since = latest, time.monotonic()
                training = read_status(self.folder).get("status") == RUNNING
            if training and time.monotonic() - since > self.hang_seconds:
                return True
        return False

    def _judge(self, attempt: Attempt, status: dict[str, Any], told: "Told", hung: bool) -> tuple[str, str]:
        """The outcome of an attempt, and the reason where it was not simply to finish."""
        if attempt.exit_code == 0:
            return FINISHED, ""
        if attempt.exit_code == 2 or self.user_error.exists():
            text = self.user_error.read_text(encoding="utf-8") if self.user_error.exists() else status.get("error", "")
            return REFUSED, text
        if told.received or status.get("status") == PREEMPTED:
            return PREEMPTED, "told to stop"
        if hung:
            return FAILED, f"no step was made for {self.hang_seconds:.0f} s after step {attempt.step}, so it was killed"
        where = f"in or after step {attempt.step + 1}" if status else "before the training began"
        reason = f"the launch ended with exit code {attempt.exit_code} {where}"
        return FAILED, f"{reason}: {status['error']}" if "error" in status else reason

    def _going_on(self, attempt: Attempt, in_vain: int) -> str:
        place = f"from step {attempt.checkpoint}" if attempt.checkpoint else "from the start"
        in_vain_too = f" (relaunch {in_vain} of {self.max_relaunches} without a new checkpoint)" if in_vain else ""
        return f"it goes on {place}{in_vain_too}"

    def _end(self, attempt: Attempt, told: "Told", in_vain: int) -> int:
        self.user_error.unlink(missing_ok=True)
        self._record(GAVE_UP if attempt.outcome == FAILED else attempt.outcome)
        if attempt.outcome == FAILED:
            print_main(f"supervisor: {attempt.reason}; {in_vain} launches led to no new checkpoint, so this is the end")
            return 1
        return {FINISHED: 0, REFUSED: 2, PREEMPTED: 128 + (told.received or signal.SIGTERM)}[attempt.outcome]

    def _record(self, status: str) -> None:
        write_json(
            self.folder / RECORD,
            {"status": status, "time": now(), "supervisor": whereabouts(), "attempts": self.attempts},
        )


class Told:
    """Within `with`: the first SIGTERM or SIGINT is noted in `received`, another one after a while in `insisted`."""

    def __init__(self) -> None:
        self.received, self.insisted = 0, False
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Told":
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if not self.received:
            self.received, self._since = number, time.monotonic()
        elif time.monotonic() - self._since > ECHO_SECONDS:
            self.insisted = True


def newest_step(folder: Path) -> int:
    """The step of the newest whole checkpoint in `folder`, 0 where there is none."""
    sealed = complete_checkpoints(folder)
    return step_of(sealed[-1]) if sealed else 0


def stamp(folder: Path) -> int:
    """When `run_status.json` was written last: equal stamps, same file. 0 where there is none."""
    try:
        return (folder / STATUS).stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def exit_code(child: Child) -> int | None:
    """The exit code of a process; None while it runs, negative where a signal killed it."""
    return child.poll() if isinstance(child, subprocess.Popen) else child.exitcode


def whereabouts() -> dict[str, Any]:
    """What tells this process from all others, here and on other machines."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": psutil.Process().create_time()}


def is_alive(process: dict[str, Any]) -> bool:
    """Whether the process of a `whereabouts` still runs, as far as can be seen from this machine."""
    try:
        created = psutil.Process(process["pid"]).create_time()
    except psutil.NoSuchProcess:
        return False
    # The moment is reckoned from that of the boot, which moves with the system's clock.
    return process["host"] == socket.gethostname() and abs(created - process["since"]) < CLOCK_SECONDS


def environment(process: psutil.Process) -> dict[str, str]:
    """The variables a process was started with; none where it is gone or another user's."""
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return {}


def family(child: Child | None, mark: Path) -> list[psutil.Process]:
    """All live processes of a launch: those below `child`, and those with `mark` in their environment.

    torchrun gives each worker a session of its own, and one whose parent was killed has lost its place in the tree.
    """
    found: dict[int, psutil.Process] = {}
    if child is not None and exit_code(child) is None:
        found |= {process.pid: process for process in below(child.pid)}
    for process in psutil.process_iter():
        if environment(process).get(USER_ERROR_FILE) == str(mark):
            found[process.pid] = process
    return list(found.values())


def below(pid: int) -> list[psutil.Process]:
    """A process and all below it; none where it is gone."""
    try:
        top = psutil.Process(pid)
        return [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def tell(child: Child, mark: Path, number: int) -> None:
    """Send the signal to the training processes themselves; where no launcher has started any, to `child`.

    torchrun, told itself, would kill them after a while (TORCHRUN_PATIENCE), and accelerate would not wait for its only
    one.
    """
    launched = {
        process.pid: process
        for process in family(child, mark)
        if {"LOCAL_RANK", "ACCELERATE_MIXED_PRECISION"} & set(environment(process))
    }
    ranks = [process for process in launched.values() if parent(process) not in launched]
    for process in ranks or below(child.pid)[:1]:
        send(process, number)


def parent(process: psutil.Process) -> int:
    """The id of a process's parent; 0 where the process is gone."""
    try:
        return process.ppid()
    except psutil.NoSuchProcess:
        return 0


def send(process: psutil.Process, number: int) -> None:
    """Send a signal to a process, which may be gone."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def kill(processes: list[psutil.Process], child: Child | None = None) -> None:
    """End `processes`, `child` among them, and return when they are gone. Raises UserError where one does not go."""
    for process in processes:
        send(process, signal.SIGKILL)
    if child is not None:  # waited for by no one else, who would take its exit code
        child.wait() if isinstance(child, subprocess.Popen) else child.join()
    _, left = psutil.wait_procs(processes, KILL_SECONDS)
    if left:
        raise UserError(
            f"process {left[0].pid} does not end though it was killed, as when a disk or a GPU does not answer; once "
            "it is gone (or the machine restarted), the same command goes on"
        )


def wait_for_port(port: int | None) -> None:
    """Return when nothing listens on TCP `port` of this machine, or after a while: the launcher says it best then."""
    end = time.monotonic() + KILL_SECONDS
    while port and time.monotonic() < end:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                return probe.bind(("", port))
            except OSError:
                time.sleep(POLL_SECONDS)
