"""Voting in a terminal: a real pseudo-terminal, and a pipe."""

import os
import pty
import select
import subprocess
import sys
import time

import pytest

from hf_llm.human_eval import terminal_ui
from hf_llm.human_eval.terminal_ui import wrap_text
from hf_llm.human_eval.votes import VoteDatabase
from tests.human_eval.comparison import make_database

SECONDS = 60
TERMINALS: list["Terminal"] = []


@pytest.fixture(autouse=True)
def kill_what_still_runs():
    yield
    while TERMINALS:
        process = TERMINALS.pop().process
        process.kill()
        process.wait(SECONDS)


class Terminal:
    """A program run in a terminal of 100 columns."""

    def __init__(self, *command: str):
        self.screen, slave = pty.openpty()
        os.set_blocking(self.screen, False)
        environment = {**os.environ, "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, close_fds=True, start_new_session=True, env=environment
        )
        self.slave, self.text = slave, ""
        TERMINALS.append(self)

    def read_until(self, words: str) -> str:
        """Everything on the screen since the last call, up to `words`."""
        end = time.monotonic() + SECONDS
        while words not in self.text:
            assert time.monotonic() < end, f"waited for {words!r}: {self.text!r}"
            if select.select([self.screen], [], [], 0.2)[0]:
                self.text += os.read(self.screen, 65536).decode()
        before, _, self.text = self.text.partition(words)
        return before

    def press(self, keys: str) -> None:
        os.write(self.screen, keys.encode())

    def has_echo(self) -> bool:
        import termios

        return bool(termios.tcgetattr(self.slave)[3] & termios.ECHO)


def command(path, name: str) -> list[str]:
    return [sys.executable, "-m", "hf_llm.arena", "--votes", str(path), "--terminal", "--annotator", name]


def test_every_key_works_and_the_terminal_is_left_as_it_was(tmp_path):
    database = make_database(tmp_path, prompts=6)
    screen = Terminal(*command(database.path, "Ada"))
    first = screen.read_until("scores: 1-5 for A, 6-0 for B")
    assert "0 of 6 pairs voted on" in first and "Question" in first
    assert not screen.has_echo()
    screen.press("\x1b[A\x1b[3~\x1bOB4?")  # arrows and Delete cast no vote
    screen.read_until("scores   A: 4")
    screen.press("9a")
    for done, key in enumerate("btxsu", 1):
        screen.read_until(f"{done} of 6 pairs voted on")
        screen.press(key)
    screen.read_until("4 of 6 pairs voted on")
    screen.press("ab")
    screen.read_until("6 of 6 pairs voted on")
    screen.read_until("That was the last one")
    screen.press("q")
    screen.read_until("Ada: 6 of 6 pairs voted on")
    assert screen.process.wait(SECONDS) == 0
    assert screen.has_echo()
    votes = database.read_votes()
    assert [v.choice for v in votes] == ["a", "b", "tie", "bad", "a", "b"]
    assert (votes[0].score_a, votes[0].score_b) == (4, 4)
    assert (votes[1].score_a, votes[1].score_b) == (None, None)


def test_control_c_keeps_every_vote(tmp_path):
    database = make_database(tmp_path, prompts=6)
    screen = Terminal(*command(database.path, "Ada"))
    screen.read_until("for B")
    screen.press("a")
    screen.read_until("1 of 6 pairs voted on")
    screen.read_until("for B")
    os.kill(screen.process.pid, 2)
    screen.read_until("Ada: 1 of 6 pairs voted on")
    assert screen.process.wait(SECONDS) == 0
    assert screen.has_echo()
    assert len(VoteDatabase(database.path).read_votes()) == 1


def test_control_c_before_the_first_key_leaves_too(tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(terminal_ui, "print_question", interrupted)
    terminal_ui.vote_in_terminal(make_database(tmp_path, prompts=6), "Ada", lambda: None)
    assert capsys.readouterr().out == "Ada: 0 of 6 pairs voted on\n"


def test_letters_from_a_pipe_vote_too(tmp_path):
    database = make_database(tmp_path, prompts=3)
    done = subprocess.run(command(database.path, "Ben"), input="a\nB\n5t\n", capture_output=True, text=True, check=True)
    assert "Ben: 3 of 3 pairs voted on" in done.stdout
    assert [v.choice for v in database.read_votes()] == ["a", "b", "tie"]


def test_the_text_of_a_model_cannot_steer_the_terminal():
    assert wrap_text("\x1b[2Jgone\x07\r\nnext\ttab", 80) == "\ufffd[2Jgone\ufffd\ufffd\nnext tab"
    assert all(len(line) <= 20 for line in wrap_text("word " * 30, 20).split("\n"))
    assert wrap_text("  a\n\n  indented", 20) == "a\n\n  indented"
