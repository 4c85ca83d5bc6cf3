"""How a command ends when something is wrong."""

import pytest

from hf_llm.core.errors import UserError, command


def ending(capsys, fault) -> tuple[int, str]:
    @command
    def main(argv=None):
        fault()

    with pytest.raises(SystemExit) as exit:
        main([])
    return exit.value.code, capsys.readouterr().err


def test_a_users_fault_is_a_message_and_exit_code_2(capsys):
    def fault():
        raise UserError("texts is no folder; name another")

    assert ending(capsys, fault) == (2, "\nerror: texts is no folder; name another\n")


def test_a_full_disk_is_told_as_such(capsys):
    def fault():
        with open("/dev/full", "w") as file:
            file.write("x" * 100_000)

    code, printed = ending(capsys, fault)
    assert code == 2
    assert "no space left on the disk" in printed and "the same command resumes" in printed


def test_a_folder_that_may_not_be_written_is_named(capsys, tmp_path):
    (tmp_path / "runs").write_text("a file")

    code, printed = ending(capsys, lambda: (tmp_path / "runs/mine").mkdir())
    assert code == 2 and f"{tmp_path}/runs/mine: Not a directory; " in printed


def test_other_processes_of_a_launch_stay_silent(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")

    def fault():
        raise UserError("said by process 0")

    assert ending(capsys, fault) == (2, "")


def test_our_own_faults_keep_their_traceback():
    @command
    def main(argv=None):
        raise PermissionError("not ours to hide")

    with pytest.raises(PermissionError):
        main([])
