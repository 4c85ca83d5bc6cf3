"""Relaunch a training after a failure, until it has finished or makes no more progress.

The launchers' own restarts (`--max_restarts` of torchrun and accelerate) do not work reliably in torch 2.13. So this
supervisor runs outside of the launcher: it ends all processes of a failed launch and runs the same command again, which
resumes from the newest checkpoint.
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
from hf_llm.core.process_identity import is_alive, process_identity
from hf_llm.pipeline.folder_lock import FolderLock
from hf_llm.pipeline.status import FAILED, FINISHED, PREEMPTED, RUNNING, STATUS, read_status, utc_timestamp
from hf_llm.training.fault_tolerance.checkpoints import checkpoint_step, complete_checkpoints
from hf_llm.training.fault_tolerance.preemption import SignalListener

# Outcomes of a launch or of its supervisor that `run_status.json` does not have.
REFUSED = "refused"  # the stage ended with a UserError
GAVE_UP = "gave up"

RECORD_FILE = "logs/supervisor.json"  # in the stage's folder; files in logs/ are neither digested nor uploaded
SUPERVISOR_LOCK = "supervisor.lock"  # beside the record
MAX_RELAUNCHES = 3  # how many relaunches in a row may lead to no new checkpoint
HANG_SECONDS = 1800.0  # a run that makes no step for so long counts as hanging
POLL_SECONDS = 0.2
STOP_SECONDS = 600.0  # how long processes may go on saving after a signal
SILENT_SECONDS = 60.0  # a training on another machine counts as dead when its status is older; it is written every 5 s
KILL_SECONDS = 60.0  # how long to wait for a killed process to be gone, and for its port to be free

# torchrun kills its processes this many seconds after a signal, unless they have ended.
SHUTDOWN_TIMEOUT_VARIABLE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"

# Launchers set one of these in the environment of every process that they start.
LAUNCHER_VARIABLES = {"LOCAL_RANK", "ACCELERATE_MIXED_PRECISION"}

Child = subprocess.Popen | BaseProcess


@dataclass
class Attempt:
    """One launch of the training, and how it ended."""

    began: str
    """The time of its start, in UTC."""
    from_step: int
    """The step of the checkpoint it resumed from; 0 for none."""
    ended: str = ""
    """The time of its end, in UTC."""
    exit_code: int | None = None
    """The launcher's exit code; a negative one is the signal that killed it."""
    step: int = 0
    """The last step in the run's status."""
    checkpoint: int = 0
    """The step of the newest checkpoint at its end; 0 for none."""
    outcome: str = RUNNING
    reason: str = ""
    """Why it has not finished."""


class Supervisor:
    """Launch a training into `folder`, and again after a crash, a killed process or a hang.

    `launch` starts the training, with the variables it is given added to the environment. There is no relaunch once the
    training has finished, has received a signal, or has ended with a UserError, nor after `max_relaunches` relaunches
    in a row that led to no new checkpoint. A run that has begun to train and makes no step for `hang_seconds` counts as
    hanging. Before a relaunch all processes of the last launch are killed, and TCP `port` must have become free. Every
    launch is recorded in `logs/supervisor.json`.
    """

    def __init__(
        self,
        folder: Path,
        launch: Callable[[dict[str, str]], Child],
        max_relaunches: int = MAX_RELAUNCHES,
        hang_seconds: float = HANG_SECONDS,
        port: int | None = None,
    ):
        self.folder = Path(folder)
        self.launch = launch
        self.max_relaunches = max_relaunches
        self.hang_seconds = hang_seconds
        self.port = port
        # Launchers hide the exit code of a UserError, so the stage writes its message to this file. The file's name is
        # in the environment of every process of this run's launches, by which `launched_processes` finds them.
        self.user_error = self.folder.resolve() / "logs" / "user_error.txt"
        self.attempts: list[dict[str, Any]] = []  # including those of earlier supervisors

    def run(self) -> int:
        """Supervise to the end.

        Returns 0 for finished, 128 + the signal for stopped by a signal, 2 for a UserError, else 1. Raises UserError
        where another supervisor is at work, or a process cannot be ended.
        """
        path = self.folder / RECORD_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        self._refuse_second_supervisor()
        with FolderLock(path.parent, SUPERVISOR_LOCK):  # of two that start at once, one continues
            return self._supervise()

    def _supervise(self) -> int:
        """Launch and relaunch, as `run` says, for a run that has no other supervisor."""
        self._take_over_run()
        last_checkpoint = newest_checkpoint_step(self.folder)
        relaunches_without_progress = 0

        with SignalListener() as signals:
            while True:
                attempt = self._run_attempt(signals)
                if attempt.outcome != FAILED:
                    break

                if attempt.checkpoint > last_checkpoint:
                    relaunches_without_progress = 0
                else:
                    relaunches_without_progress += 1
                last_checkpoint = attempt.checkpoint  # may be a lower step than before, if a checkpoint was quarantined
                if relaunches_without_progress > self.max_relaunches:
                    break

                plan = self._describe_relaunch(attempt, relaunches_without_progress)
                print_main(f"supervisor: {attempt.reason}; {plan}")
                self._write_record(RUNNING)
                wait_for_port(self.port)

        return self._finish(attempt, signals, relaunches_without_progress)

    def _read_record(self) -> dict[str, Any]:
        path = self.folder / RECORD_FILE
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"attempts": []}

    def _refuse_second_supervisor(self) -> None:
        """Raise UserError where another supervisor of the run is still alive."""
        record = self._read_record()
        other = record.get("supervisor")
        may_be_running = record.get("status") == RUNNING and other != process_identity()
        if may_be_running and (is_alive(other) or self._is_training_elsewhere(other)):
            raise UserError(
                f"{self.folder} is supervised already, by process {other['pid']} on {other['host']}; a second training "
                "would write to the same files. Wait for it, or stop it (kill it once, and it saves)"
            )

    def _take_over_run(self) -> None:
        """Continue the record of an earlier supervisor, and kill processes that it has left running."""
        self.attempts = self._read_record()["attempts"]
        leftovers = launched_processes(None, self.user_error)
        if leftovers:
            print_main(f"supervisor: {len(leftovers)} processes of an earlier launch still run; they are killed")
            kill_processes(leftovers)

    def _is_training_elsewhere(self, other: dict[str, Any]) -> bool:
        """Whether a training supervised on another machine wrote its status a moment ago."""
        silent_nanoseconds = time.time_ns() - status_time_ns(self.folder)
        return other["host"] != socket.gethostname() and silent_nanoseconds < SILENT_SECONDS * 10**9

    def _run_attempt(self, signals: SignalListener) -> Attempt:
        """Launch the training once, wait for its end, and end all of its processes."""
        self.user_error.unlink(missing_ok=True)
        attempt = Attempt(began=utc_timestamp(), from_step=newest_checkpoint_step(self.folder))
        self.attempts.append(asdict(attempt))
        self._write_record(RUNNING)

        status_time_before = status_time_ns(self.folder)
        shutdown_timeout = os.environ.get(SHUTDOWN_TIMEOUT_VARIABLE, str(int(STOP_SECONDS)))
        child = self.launch({USER_ERROR_FILE: str(self.user_error), SHUTDOWN_TIMEOUT_VARIABLE: shutdown_timeout})
        hangs = self._wait_for_launch(child, signals, status_time_before)

        # End the processes that are left: the launcher's tree if it hangs, then any that have outlived it.
        self._wait_for_saves(child, signals)
        if exit_code(child) is None:
            kill_processes(launched_processes(child, self.user_error), child)
        kill_processes(launched_processes(None, self.user_error))

        # A status that this launch has not written is an earlier one's.
        status = {}
        if status_time_ns(self.folder) != status_time_before:
            status = read_status(self.folder)
        attempt.ended = utc_timestamp()
        attempt.exit_code = exit_code(child)
        attempt.step = status.get("step", 0)
        attempt.checkpoint = newest_checkpoint_step(self.folder)
        attempt.outcome, attempt.reason = self._judge_attempt(attempt, status, signals, hangs)
        self.attempts[-1] = asdict(attempt)
        return attempt

    def _wait_for_launch(self, child: Child, signals: SignalListener, status_time_before: int) -> bool:
        """Wait for the launcher's end, and forward a signal once. A second signal ends the wait.

        Returns True where the run hangs, so that it is still running.
        """
        last_status_time = status_time_before
        last_change = time.monotonic()
        is_training = False
        is_signal_forwarded = False

        while exit_code(child) is None and not signals.received_again:
            time.sleep(POLL_SECONDS)
            if signals.received and not is_signal_forwarded:
                forward_signal(child, self.user_error, signals.received)
                is_signal_forwarded = True

            status_time = status_time_ns(self.folder)
            if status_time != last_status_time:
                last_status_time = status_time
                last_change = time.monotonic()
                is_training = read_status(self.folder).get("status") == RUNNING
            if is_training and time.monotonic() - last_change > self.hang_seconds:
                return True
        return False

    def _wait_for_saves(self, child: Child, signals: SignalListener) -> None:
        """After a signal, wait for processes that outlive their launcher because they are still saving."""
        deadline = time.monotonic() + STOP_SECONDS
        while signals.received and not signals.received_again and time.monotonic() < deadline:
            if not launched_processes(child, self.user_error):
                return
            time.sleep(POLL_SECONDS)

    def _judge_attempt(
        self, attempt: Attempt, status: dict[str, Any], signals: SignalListener, hangs: bool
    ) -> tuple[str, str]:
        """Return the outcome of an attempt, and the reason where it has not finished."""
        if attempt.exit_code == 0:
            return FINISHED, ""

        if attempt.exit_code == 2 or self.user_error.exists():
            message = status.get("error", "")
            if self.user_error.exists():
                message = self.user_error.read_text(encoding="utf-8")
            return REFUSED, message

        if signals.received:
            return PREEMPTED, f"received {signal.Signals(signals.received).name}"
        if status.get("status") == PREEMPTED:
            return PREEMPTED, "stopped by a signal"

        if hangs:
            return FAILED, f"no step was made for {self.hang_seconds:.0f} s after step {attempt.step}, so it was killed"

        when = f"in or after step {attempt.step + 1}" if status else "before the training began"
        reason = f"the launch ended with exit code {attempt.exit_code} {when}"
        if "error" in status:
            reason = f"{reason}: {status['error']}"
        return FAILED, reason

    def _describe_relaunch(self, attempt: Attempt, relaunches_without_progress: int) -> str:
        start = "it starts from the beginning"
        if attempt.checkpoint:
            start = f"it resumes from step {attempt.checkpoint}"
        if not relaunches_without_progress:
            return start
        return f"{start} (relaunch {relaunches_without_progress} of {self.max_relaunches} without a new checkpoint)"

    def _finish(self, attempt: Attempt, signals: SignalListener, relaunches_without_progress: int) -> int:
        """Record how the last attempt ended, and return the supervisor's exit code."""
        self.user_error.unlink(missing_ok=True)
        self._write_record(GAVE_UP if attempt.outcome == FAILED else attempt.outcome)

        if attempt.outcome == FAILED:
            print_main(
                f"supervisor: {attempt.reason}; giving up, as {relaunches_without_progress} launches led to no new "
                "checkpoint"
            )
            return 1
        if attempt.outcome == REFUSED:
            return 2
        if attempt.outcome == PREEMPTED:
            return 128 + (signals.received or signal.SIGTERM)
        return 0

    def _write_record(self, status: str) -> None:
        record = {
            "status": status,
            "time": utc_timestamp(),
            "supervisor": process_identity(),
            "attempts": self.attempts,
        }
        write_json(self.folder / RECORD_FILE, record)


def newest_checkpoint_step(folder: Path) -> int:
    """Return the step of the newest complete checkpoint in `folder`, 0 where there is none."""
    complete = complete_checkpoints(folder)
    return checkpoint_step(complete[-1]) if complete else 0


def status_time_ns(folder: Path) -> int:
    """Return when `run_status.json` was last written, in nanoseconds; 0 where there is none."""
    try:
        return (folder / STATUS).stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def exit_code(child: Child) -> int | None:
    """Return the exit code of a process; None while it runs, negative where a signal killed it."""
    return child.poll() if isinstance(child, subprocess.Popen) else child.exitcode


def process_environment(process: psutil.Process) -> dict[str, str]:
    """Return the variables a process was started with; none where it is gone or another user's."""
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return {}


def launched_processes(child: Child | None, mark: Path) -> list[psutil.Process]:
    """Return all live processes of a launch: `child` and those below it, and those with `mark` in their environment.

    The process tree alone is not enough: a worker whose parent was killed is no longer below `child`, and torchrun
    gives each worker its own session.
    """
    processes: dict[int, psutil.Process] = {}
    if child is not None and exit_code(child) is None:
        for process in process_tree(child.pid):
            processes[process.pid] = process

    for process in psutil.process_iter():
        if process_environment(process).get(USER_ERROR_FILE) == str(mark):
            processes[process.pid] = process
    return list(processes.values())


def process_tree(pid: int) -> list[psutil.Process]:
    """Return a process and all below it; none where it is gone."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def forward_signal(child: Child, mark: Path, number: int) -> None:
    """Send a signal to the training processes themselves; where no launcher has started any, to `child`.

    It is not sent to the launcher: torchrun would kill its workers some time after (`SHUTDOWN_TIMEOUT_VARIABLE`), and
    accelerate would not wait for a single one.
    """
    launched = {}
    for process in launched_processes(child, mark):
        if LAUNCHER_VARIABLES & set(process_environment(process)):
            launched[process.pid] = process

    # Their children, such as data workers, have inherited the variables.
    ranks = [process for process in launched.values() if parent_pid(process) not in launched]
    for process in ranks or process_tree(child.pid)[:1]:
        send_signal(process, number)


def parent_pid(process: psutil.Process) -> int:
    """Return the id of a process's parent; 0 where the process is gone."""
    try:
        return process.ppid()
    except psutil.NoSuchProcess:
        return 0


def send_signal(process: psutil.Process, number: int) -> None:
    """Send a signal to a process, which may be gone."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def kill_processes(processes: list[psutil.Process], child: Child | None = None) -> None:
    """Kill `processes`, `child` among them, and return when they are gone. Raises UserError where one stays."""
    for process in processes:
        send_signal(process, signal.SIGKILL)

    # The child is waited for by its own object first: psutil would consume its exit code.
    if isinstance(child, subprocess.Popen):
        child.wait()
    elif child is not None:
        child.join()

    _, survivors = psutil.wait_procs(processes, KILL_SECONDS)
    if survivors:
        raise UserError(
            f"process {survivors[0].pid} does not end though it was killed, as when a disk or a GPU does not answer; "
            "once it is gone (or the machine restarted), the same command resumes"
        )


def wait_for_port(port: int | None) -> None:
    """Return when nothing listens on TCP `port` of this machine.

    Returns after `KILL_SECONDS` even if the port is in use: the launcher then fails with its own error.
    """
    if not port:
        return
    deadline = time.monotonic() + KILL_SECONDS
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
                return
            except OSError:
                time.sleep(POLL_SECONDS)
