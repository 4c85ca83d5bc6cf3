import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from hf_llm.core.errors import USER_ERROR_FILE, UserError
from hf_llm.training.fault_tolerance.supervisor import RECORD_FILE, Supervisor, process_identity, wait_for_port
from tests.training.fault_tolerance.faults import (
    hang_in_step,
    kill_in_save,
    kill_in_step,
    launch,
    nan_loss,
    run,
    slow_steps,
)


def supervised(folder, *launches, processes=1, changes=None, **options):
    """A supervisor of tiny trainings: each of `launches` holds the faults of one, and those after have none."""
    coming = list(launches)

    def start(variables):
        faults = coming.pop(0) if coming else []
        return launch(folder, *faults, processes=processes, variables=variables, **(changes or {}))

    return Supervisor(folder, start, **options)


def record(folder):
    return json.loads((folder / RECORD_FILE).read_text())


def outcomes(folder):
    return [attempt["outcome"] for attempt in record(folder)["attempts"]]


def outcome(folder):
    written = json.loads(folder.with_name(folder.name + ".outcome.json").read_text())
    return [written["weights"], written["history"]]


def expected(outcome):
    return [outcome["weights"], outcome["history"]]


def test_after_each_kill_9_it_is_launched_again_and_ends_as_if_nothing_had_been(undisturbed, tmp_path):
    folder = tmp_path / "base"
    kills = [[partial(kill_in_step, step=6)], [partial(kill_in_step, step=11)]]
    assert supervised(folder, *kills, max_relaunches=0).run() == 0  # each led to a new checkpoint
    assert outcome(folder) == expected(undisturbed.ended.outcome)
    written = record(folder)
    assert written["status"] == "finished"
    assert [(attempt["from_step"], attempt["checkpoint"]) for attempt in written["attempts"]] == [
        (0, 4),
        (4, 8),
        (8, 12),
    ]
    assert [attempt["exit_code"] for attempt in written["attempts"]] == [1, 1, 0]
    assert all(attempt["began"] <= attempt["ended"] for attempt in written["attempts"])


def test_one_of_two_ranks_killed_ends_the_launch_and_the_next_is_exact(undisturbed_by_two, tmp_path):
    folder = tmp_path / "base"
    assert supervised(folder, [partial(kill_in_step, step=7, rank=1)], processes=2).run() == 0
    assert outcome(folder) == expected(undisturbed_by_two)
    assert outcomes(folder) == ["failed", "finished"]


def test_a_rank_killed_amid_a_save_is_no_fault_of_the_disk(undisturbed_by_two, tmp_path):
    folder = tmp_path / "base"
    killed = [partial(kill_in_save, step=8, file="rng_state_1.pth")]
    assert supervised(folder, killed, processes=2).run() == 0
    assert outcomes(folder) == ["failed", "finished"]
    assert outcome(folder) == expected(undisturbed_by_two)


def test_a_run_that_hangs_is_killed_and_goes_on_and_the_step_is_named(undisturbed, tmp_path, capsys):
    folder = tmp_path / "base"
    assert supervised(folder, [partial(hang_in_step, step=7)], hang_seconds=3).run() == 0
    assert outcome(folder) == expected(undisturbed.ended.outcome)
    assert "no step was made for 3 s after step 6, so it was killed; it resumes from step 4" in capsys.readouterr().out


def test_where_one_of_two_ranks_hangs_the_other_ends_the_job_at_ddp_timeout_and_names_the_step(
    undisturbed_by_two, tmp_path
):
    folder = tmp_path / "base"
    assert (
        supervised(folder, [partial(hang_in_step, step=7, rank=1)], processes=2, changes={"ddp_timeout": 4}).run() == 0
    )
    log = folder.with_name("base.log").read_text()
    assert "This was in or after step 7, in process 0 of 2" in log
    assert "more than ddp_timeout = 4 s behind" in log
    assert outcome(folder) == expected(undisturbed_by_two)


def test_the_launcher_of_a_run_that_hangs_counts_as_killed(tmp_path):
    folder = tmp_path / "base"
    hanging = (
        "import os, time\n"
        f"time.sleep(0.1); open({str(folder / 'run_status.json')!r}, 'w').write('{{\"status\": \"running\"}}')\n"
        "time.sleep(3600)"
    )
    assert Supervisor(folder, lambda variables: script(hanging, variables), 0, hang_seconds=1).run() == 1
    (attempt,) = record(folder)["attempts"]
    assert (attempt["exit_code"], attempt["outcome"]) == (-signal.SIGKILL, "failed")


def test_a_fault_that_comes_back_each_time_ends_it_after_so_many_relaunches(tmp_path, capsys):
    folder = tmp_path / "base"
    again = [partial(kill_in_step, step=6)]
    assert supervised(folder, again, again, again, again, max_relaunches=2).run() == 1
    assert outcomes(folder) == ["failed"] * 4  # the first made a checkpoint, three did not
    assert record(folder)["status"] == "gave up"
    assert "3 launches led to no new checkpoint" in capsys.readouterr().out


def test_an_error_of_the_users_is_not_tried_again_though_the_launcher_hides_its_exit_code(tmp_path):
    folder = tmp_path / "base"
    assert supervised(folder, [partial(nan_loss, steps=list(range(2, 13)))], processes=2).run() == 2
    (attempt,) = record(folder)["attempts"]
    assert (attempt["exit_code"], attempt["outcome"]) == (1, "refused")
    assert "not finite in 5 steps in a row" in attempt["reason"]


def when(text, log, act):
    """Call `act` in a thread when `log` holds `text`."""

    def wait():
        end = time.monotonic() + 60
        while not (log.exists() and text in log.read_text()):
            if time.monotonic() > end:
                return  # and whoever waits for the act fails
            time.sleep(0.02)
        act()

    threading.Thread(target=wait, daemon=True).start()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_passes_that_on_once_waits_for_the_save_and_does_not_launch_again(
    undisturbed_by_two, tmp_path, number
):
    folder = tmp_path / "base"
    supervisor = supervised(folder, [partial(slow_steps, seconds=0.3)], processes=2)
    when("begun 5", tmp_path / "base.log", lambda: os.kill(os.getpid(), number))
    assert supervisor.run() == 128 + number
    assert outcomes(folder) == ["preempted"]
    assert (folder / "checkpoint-5").exists() or (folder / "checkpoint-6").exists()
    assert run(folder, processes=2).outcome["weights"] == undisturbed_by_two["weights"]


def test_told_twice_it_waits_no_longer(tmp_path):
    folder = tmp_path / "base"
    supervisor = supervised(folder, [partial(hang_in_step, step=3)])

    def insist():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(2)
        os.kill(os.getpid(), signal.SIGTERM)

    when('"step": 2', folder / "run_status.json", insist)
    assert supervisor.run() == 143


# Small programs in place of a launcher and its workers: what matters is who is their parent and who kills them.
WORKER = "import os, time; open({!r}, 'w').write(str(os.getpid())); time.sleep(3600)"


def script(code, variables=None, **options):
    return subprocess.Popen([sys.executable, "-S", "-c", code], env={**os.environ, **(variables or {})}, **options)


def pid_in(path, seconds=30):
    end = time.monotonic() + seconds
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return int(path.read_text())


def orphaning(path):
    """The code of a launcher that dies and leaves a worker behind, in a session of its own as torchrun gives it."""
    worker = WORKER.format(str(path))
    return (
        f"import os, subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-S', '-c', {worker!r}], start_new_session=True)\n"
        f"while not os.path.exists({str(path)!r}) or not open({str(path)!r}).read(): time.sleep(0.01)\n"
        f"sys.exit(1)"
    )


def test_a_worker_that_outlives_its_launcher_is_killed_before_the_next_launch(tmp_path):
    alive = []

    def start(variables):
        if alive_before := [path for path in tmp_path.glob("worker-*") if psutil.pid_exists(int(path.read_text()))]:
            alive.extend(alive_before)
        return script(orphaning(tmp_path / f"worker-{len(list(tmp_path.glob('worker-*')))}"), variables)

    assert Supervisor(tmp_path / "base", start, max_relaunches=2).run() == 1
    assert len(list(tmp_path.glob("worker-*"))) == 3
    assert alive == []


def test_what_a_killed_supervisor_left_running_is_killed_by_the_next(tmp_path, capsys):
    folder = tmp_path / "base"
    supervisor = Supervisor(folder, lambda variables: script("pass", variables))
    left = script(WORKER.format(str(tmp_path / "pid")), {USER_ERROR_FILE: str(supervisor.user_error)})
    other = script(WORKER.format(str(tmp_path / "other")), {USER_ERROR_FILE: str(tmp_path / "another-run")})
    pid_in(tmp_path / "pid"), pid_in(tmp_path / "other")
    try:
        assert supervisor.run() == 0
        assert not psutil.pid_exists(left.pid)
        assert other.poll() is None
        assert "1 processes of an earlier launch still run; they are killed" in capsys.readouterr().out
    finally:
        other.kill(), other.wait(60)


def test_a_second_supervisor_of_one_run_is_refused_and_that_of_a_killed_one_is_not(tmp_path):
    folder = tmp_path / "base"
    first = script("import time; time.sleep(3600)")
    process = psutil.Process(first.pid)
    (folder / "logs").mkdir(parents=True)
    written = {"status": "running", "attempts": [], "supervisor": {**process_identity(), "pid": first.pid}}
    written["supervisor"]["since"] = process.create_time()
    (folder / RECORD_FILE).write_text(json.dumps(written))
    second = Supervisor(folder, lambda variables: script("pass", variables))
    with pytest.raises(UserError, match=f"is supervised already, by process {first.pid}"):
        second.run()
    assert first.poll() is None
    written["supervisor"]["since"] += 2  # the system's clock has been set
    (folder / RECORD_FILE).write_text(json.dumps(written))
    with pytest.raises(UserError, match="is supervised already"):
        second.run()
    first.kill(), first.wait(60)
    assert second.run() == 0


def test_one_on_another_machine_is_alive_as_long_as_its_training_writes_its_status(tmp_path):
    (folder := tmp_path / "base" / "logs").mkdir(parents=True)
    other = {"status": "running", "attempts": [], "supervisor": {"host": "node7", "pid": os.getpid(), "since": 0.0}}
    (tmp_path / "base" / RECORD_FILE).write_text(json.dumps(other))
    status = folder.parent / "run_status.json"
    status.write_text('{"status": "running", "step": 3}')
    second = Supervisor(folder.parent, lambda variables: script("pass", variables))
    with pytest.raises(UserError, match=f"is supervised already, by process {os.getpid()} on node7"):
        second.run()
    os.utime(status, (time.time() - 120, time.time() - 120))
    assert second.run() == 0


def test_after_a_damaged_checkpoint_was_quarantined_new_ones_count_again(tmp_path):
    folder, code = tmp_path / "base", "raise SystemExit(1)"
    steps = iter([8, 4, 6, 8, 8, 8])  # what the newest checkpoint is after each launch

    def start(variables):
        for old in folder.glob("checkpoint-*"):
            shutil.rmtree(old)
        (new := folder / f"checkpoint-{next(steps)}").mkdir(parents=True)
        (new / "manifest.json").write_text("{}")
        return script(code, variables)

    assert Supervisor(folder, start, max_relaunches=1).run() == 1
    assert [attempt["checkpoint"] for attempt in record(folder)["attempts"]] == [8, 4, 6, 8, 8, 8]


def test_torchrun_is_told_to_wait_for_a_save(tmp_path, monkeypatch):
    from torch.distributed.launcher.api import LaunchConfig

    given = []

    def start(variables):
        given.append(variables)
        return script("pass", variables)

    assert Supervisor(tmp_path / "base", start).run() == 0
    for name, value in given[0].items():
        monkeypatch.setenv(name, value)
    assert LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=1).shutdown_timeout == 600


def test_the_signal_goes_to_the_ranks_and_not_to_their_launcher_which_would_hurry_them(tmp_path):
    rank = (
        "import os, signal, sys, time\n"
        f"def told(*_): open({str(tmp_path / 'told')!r}, 'a').write(os.environ['LOCAL_RANK']); sys.exit(143)\n"
        f"signal.signal(signal.SIGTERM, told)\n"
        f"open({str(tmp_path)!r} + '/rank-' + os.environ['LOCAL_RANK'], 'w').write(str(os.getpid()))\n"
        "time.sleep(3600)"
    )
    launcher = (
        "import os, subprocess, sys\n"
        f"ranks = [subprocess.Popen([sys.executable, '-S', '-c', {rank!r}], start_new_session=True,\n"
        "    env={**os.environ, 'LOCAL_RANK': str(i)}) for i in range(2)]\n"
        "sys.exit(max(rank.wait() for rank in ranks) > 0)"
    )
    supervisor = Supervisor(tmp_path / "base", lambda variables: script(launcher, variables))

    def stop():
        pid_in(tmp_path / "rank-0"), pid_in(tmp_path / "rank-1")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    assert supervisor.run() == 143
    assert sorted((tmp_path / "told").read_text()) == ["0", "1"]
    (attempt,) = record(tmp_path / "base")["attempts"]
    assert attempt["exit_code"] == 1  # its own end, by no signal


def test_it_waits_until_the_port_is_free():
    listener = socket.socket()
    listener.bind(("", 0))
    listener.listen()
    port = listener.getsockname()[1]
    threading.Timer(0.5, listener.close).start()
    wait_for_port(port)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("", port))


def test_the_record_is_where_neither_digests_nor_uploads_look():
    from hf_llm.core.manifest import SKIPPED
    from hf_llm.training.hub_upload import IGNORED_FILES

    assert Path(RECORD_FILE).parts[0] in SKIPPED
    assert any(Path(RECORD_FILE).match(pattern) for pattern in IGNORED_FILES)
