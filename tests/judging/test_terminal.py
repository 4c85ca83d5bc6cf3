"""Judging in a terminal: a real pseudo-terminal, and a pipe."""

import os
import pty
import select
import subprocess
import sys
import time

from comparison import votes_file

from hf_llm.judging.terminal import wrapped
from hf_llm.judging.votes import Votes

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
    terminal = Terminal(*command(votes.path, "Ada"))
    first = terminal.until("scores: 1-5 for A, 6-0 for B")
    assert "0 of 6 judged" in first and "Question" in first
    assert not terminal.echoes()
    terminal.press("4?")
    terminal.until("scores   A: 4")
    terminal.press("9a")
    for done, key in enumerate("btxsu", 1):
        terminal.until(f"{done} of 6 judged")
        terminal.press(key)
    terminal.until("4 of 6 judged")
    terminal.press("ab")
    terminal.until("6 of 6 judged")
    terminal.until("That was the last one")
    terminal.press("q")
    terminal.until("Ada: 6 of 6 judged")
    assert terminal.process.wait(SECONDS) == 0
    assert terminal.echoes()
    cast = votes.standing()
    assert [v.choice for v in cast] == ["a", "b", "tie", "bad", "a", "b"]
    assert (cast[0].score_a, cast[0].score_b) == (4, 4)
    assert (cast[1].score_a, cast[1].score_b) == (None, None)


def test_control_c_leaves_with_every_vote_kept(tmp_path):
    votes = votes_file(tmp_path, prompts=6)
    terminal = Terminal(*command(votes.path, "Ada"))
    terminal.until("for B")
    terminal.press("a")
    terminal.until("1 of 6 judged")
    terminal.until("for B")
    os.kill(terminal.process.pid, 2)
    terminal.until("Ada: 1 of 6 judged")
    assert terminal.process.wait(SECONDS) == 0
    assert terminal.echoes()
    assert len(Votes(votes.path).standing()) == 1


def test_letters_from_a_pipe_judge_too(tmp_path):
    votes = votes_file(tmp_path, prompts=3)
    done = subprocess.run(command(votes.path, "Ben"), input="a\nB\n5t\n", capture_output=True, text=True, check=True)
    assert "Ben: 3 of 3 judged" in done.stdout
    assert [v.choice for v in votes.standing()] == ["a", "b", "tie"]


def test_a_models_words_cannot_steer_the_terminal():
    assert wrapped("\x1b[2Jgone\x07\r\nnext\ttab", 80) == "\ufffd[2Jgone\ufffd\ufffd\nnext tab"
    assert all(len(line) <= 20 for line in wrapped("word " * 30, 20).split("\n"))
    assert wrapped("  a\n\n  indented", 20) == "a\n\n  indented"
