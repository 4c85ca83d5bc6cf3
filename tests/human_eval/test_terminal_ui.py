"""Judging in a terminal: a real pseudo-terminal, and a pipe."""

import os
import pty
import select
import subprocess
import sys
import time

from hf_llm.human_eval import terminal_ui
from hf_llm.human_eval.terminal_ui import wrapped
from hf_llm.human_eval.votes import Votes
from tests.human_eval.comparison import votes_file

SECONDS = 60


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

    def until(self, words: str) -> str:
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

    def echoes(self) -> bool:
        import termios

        return bool(termios.tcgetattr(self.slave)[3] & termios.ECHO)


def command(path, name: str) -> list[str]:
    return [sys.executable, "-m", "hf_llm.judge", "--votes", str(path), "--terminal", "--annotator", name]


def test_every_key_works_and_the_terminal_is_left_as_it_was(tmp_path):
    votes = votes_file(tmp_path, prompts=6)
    screen = Terminal(*command(votes.path, "Ada"))
    first = screen.until("scores: 1-5 for A, 6-0 for B")
    assert "0 of 6 judged" in first and "Question" in first
    assert not screen.echoes()
    screen.press("\x1b[A\x1b[3~\x1bOB4?")  # arrows and Delete are no judgements
    screen.until("scores   A: 4")
    screen.press("9a")
    for done, key in enumerate("btxsu", 1):
        screen.until(f"{done} of 6 judged")
        screen.press(key)
    screen.until("4 of 6 judged")
    screen.press("ab")
    screen.until("6 of 6 judged")
    screen.until("That was the last one")
    screen.press("q")
    screen.until("Ada: 6 of 6 judged")
    assert screen.process.wait(SECONDS) == 0
    assert screen.echoes()
    cast = votes.standing()
    assert [v.choice for v in cast] == ["a", "b", "tie", "bad", "a", "b"]
    assert (cast[0].score_a, cast[0].score_b) == (4, 4)
    assert (cast[1].score_a, cast[1].score_b) == (None, None)


def test_control_c_leaves_with_every_vote_kept(tmp_path):
    votes = votes_file(tmp_path, prompts=6)
    screen = Terminal(*command(votes.path, "Ada"))
    screen.until("for B")
    screen.press("a")
    screen.until("1 of 6 judged")
    screen.until("for B")
    os.kill(screen.process.pid, 2)
    screen.until("Ada: 1 of 6 judged")
    assert screen.process.wait(SECONDS) == 0
    assert screen.echoes()
    assert len(Votes(votes.path).standing()) == 1


def test_control_c_before_a_key_is_waited_for_leaves_too(tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(terminal_ui, "show", interrupted)
    terminal_ui.judge(votes_file(tmp_path, prompts=6), "Ada", lambda: None)
    assert capsys.readouterr().out == "Ada: 0 of 6 judged\n"


def test_letters_from_a_pipe_judge_too(tmp_path):
    votes = votes_file(tmp_path, prompts=3)
    done = subprocess.run(command(votes.path, "Ben"), input="a\nB\n5t\n", capture_output=True, text=True, check=True)
    assert "Ben: 3 of 3 judged" in done.stdout
    assert [v.choice for v in votes.standing()] == ["a", "b", "tie"]


def test_a_models_words_cannot_steer_the_terminal():
    assert wrapped("\x1b[2Jgone\x07\r\nnext\ttab", 80) == "\ufffd[2Jgone\ufffd\ufffd\nnext tab"
    assert all(len(line) <= 20 for line in wrapped("word " * 30, 20).split("\n"))
    assert wrapped("  a\n\n  indented", 20) == "a\n\n  indented"
