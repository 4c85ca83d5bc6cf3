"""One process at a time in a folder, and what becomes of the lock of one that has died."""

import json
import os
import subprocess
import sys
import textwrap
import time

import pytest

from hf_llm.core.errors import UserError
from hf_llm.core.process_identity import process_identity
from hf_llm.pipeline import folder_lock
from hf_llm.pipeline.folder_lock import LOCK_FILE, FolderLock, check_not_held, read_holder


def start(code: str, *arguments: str) -> subprocess.Popen:
    """A process that runs `code` with the lock's names imported."""
    header = (
        "import os, sys, time\nfrom hf_llm.pipeline.folder_lock import *\nfrom hf_llm.core.errors import UserError\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", header + textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
    )


def write_holder(folder, **changes):
    """A lock file as another process would have left it."""
    folder.mkdir(exist_ok=True)
    holder = {**process_identity(), "token": "t", "launch": "", "began": "2026-01-01T00:00:00Z", **changes}
    (folder / LOCK_FILE).write_text(json.dumps(holder))
    return holder


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_lock_is_there_while_it_is_held_and_names_its_holder(tmp_path):
    with FolderLock(tmp_path / "base"):
        holder = read_holder(tmp_path / "base" / LOCK_FILE)
        assert holder["pid"] == os.getpid() and holder["host"] == process_identity()["host"]
    assert list((tmp_path / "base").iterdir()) == []


def test_one_process_may_take_it_twice_and_gives_it_up_once(tmp_path):
    with FolderLock(tmp_path):
        with FolderLock(tmp_path):
            pass
        assert (tmp_path / LOCK_FILE).exists()
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_second_process_is_refused_with_pid_host_and_remedy_until_the_first_has_ended(tmp_path):
    process = start("FolderLock(sys.argv[1]).acquire(); print('has it', flush=True); time.sleep(60)", tmp_path)
    try:
        assert process.stdout.readline() == "has it\n"
        with pytest.raises(
            UserError, match=rf"(?s)in use by process {process.pid} on .*since 20.*Wait for it, or stop"
        ):
            FolderLock(tmp_path).acquire()
        with pytest.raises(UserError, match=str(process.pid)):
            check_not_held(tmp_path)
    finally:
        process.kill()
        process.communicate()
    check_not_held(tmp_path)
    FolderLock(tmp_path).acquire().release()


def test_the_lock_of_a_process_that_was_killed_is_taken_over_with_a_word(tmp_path, capsys):
    write_holder(tmp_path, pid=dead_pid())
    with FolderLock(tmp_path):
        assert read_holder(tmp_path / LOCK_FILE)["pid"] == os.getpid()
    assert "is taken over, since that process is gone" in capsys.readouterr().out


def test_a_pid_that_another_process_has_by_now_counts_as_dead(tmp_path):
    write_holder(tmp_path, since=time.time() - 1e6)
    FolderLock(tmp_path).acquire().release()


def test_of_many_that_start_at_once_exactly_one_gets_it_also_where_a_dead_one_left_its_lock(tmp_path):
    code = """
        folder, go = sys.argv[1:]
        while not os.path.exists(go):
            time.sleep(0.001)
        try:
            FolderLock(folder).acquire()
            print("won", flush=True)
            time.sleep(3)
        except UserError:
            print("refused", flush=True)
    """
    for number in range(2):
        folder = tmp_path / str(number)
        if number:
            write_holder(folder, pid=dead_pid())
        processes = [start(code, folder, tmp_path / f"go{number}") for _ in range(6)]
        time.sleep(1.5)
        (tmp_path / f"go{number}").touch()
        said = [process.communicate(timeout=60)[0].splitlines()[-1] for process in processes]
        assert sorted(said) == ["refused"] * 5 + ["won"]
        assert list(folder.iterdir()) == []


@pytest.mark.parametrize("other", [{"host": "elsewhere"}, {"namespace": "another container"}])
def test_a_holder_whose_pid_means_nothing_here_is_judged_by_its_heartbeat(tmp_path, monkeypatch, capsys, other):
    monkeypatch.setattr(folder_lock, "SILENT_SECONDS", 1.0)
    write_holder(tmp_path, **other)
    began = time.monotonic()
    FolderLock(tmp_path).acquire().release()
    assert time.monotonic() - began > 0.5
    printed = capsys.readouterr().out
    assert "waiting up to 1 s for a sign of life" in printed and "no sign of life for 1 s" in printed


def test_a_holder_on_another_host_that_gives_a_sign_of_life_is_left_alone_and_the_remedy_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "SILENT_SECONDS", 20.0)
    write_holder(tmp_path, host="elsewhere", pid=7)
    beat = "time.sleep(1); os.utime(sys.argv[1])"
    process = start(beat, tmp_path / LOCK_FILE)
    with pytest.raises(
        UserError, match=r"(?s)process 7 on elsewhere, not this host.*sign of life \d+ s ago.*delete .*lock"
    ):
        FolderLock(tmp_path).acquire()
    process.communicate()


def test_an_old_lock_of_another_host_is_taken_over_at_once(tmp_path, capsys):
    write_holder(tmp_path, host="elsewhere")
    os.utime(tmp_path / LOCK_FILE, (1, 1))
    FolderLock(tmp_path).acquire().release()
    assert "waiting" not in capsys.readouterr().out


def test_the_holder_touches_its_lock_and_ends_where_another_has_taken_it_over(tmp_path):
    code = """
        import hf_llm.pipeline.folder_lock as module
        module.HEARTBEAT_SECONDS = 0.1
        FolderLock(sys.argv[1]).acquire()
        print("has it", flush=True)
        time.sleep(30)
        print("still here")
    """
    process = start(code, tmp_path)
    assert process.stdout.readline() == "has it\n"
    os.utime(tmp_path / LOCK_FILE, (1, 1))
    time.sleep(0.6)
    assert (tmp_path / LOCK_FILE).stat().st_mtime > 1
    write_holder(tmp_path, token="another")
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 1 and "still here" not in said
    assert read_holder(tmp_path / LOCK_FILE)["token"] == "another"


def test_a_file_system_without_hard_links_locks_too(tmp_path, monkeypatch):
    def no_links(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    with FolderLock(tmp_path):
        process = start("FolderLock(sys.argv[1]).acquire()", tmp_path)
        process.stderr = None
        process.communicate(timeout=30)
        assert process.returncode == 1
    assert list(tmp_path.iterdir()) == []


def test_the_other_processes_of_a_launch_know_their_own_lock(tmp_path, monkeypatch):
    for name, value in {"RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29501"}.items():
        monkeypatch.setenv(name, value)
    write_holder(tmp_path, launch=folder_lock.launch_name())
    check_not_held(tmp_path)
    write_holder(tmp_path, launch="127.0.0.1 29999")
    with pytest.raises(UserError, match="in use by process"):
        check_not_held(tmp_path)


def test_a_process_that_works_in_another_folder_keeps_its_lock(tmp_path, monkeypatch):
    """There a folder of the same relative name may be locked by another process, which has taken over nothing."""
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(folder_lock, "HEARTBEAT_SECONDS", 0.05)
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    write_holder(tmp_path / "there/base")
    monkeypatch.chdir(tmp_path / "here")
    with FolderLock("base") as lock:
        os.utime("base/lock.json", (1, 1))
        monkeypatch.chdir(tmp_path / "there")
        deadline = time.monotonic() + 20
        while lock.path.stat().st_mtime == 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert lock.path.stat().st_mtime > 1
    assert ended == []
    assert not (tmp_path / "here/base/lock.json").exists()
    assert (tmp_path / "there/base/lock.json").exists()
