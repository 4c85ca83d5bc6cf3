"""Judging in the terminal: the page's questions and keys, one key for each judgement."""

import os
import sys
import termios
import textwrap
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from select import select
from shutil import get_terminal_size

from hf_llm.core.errors import UserError
from hf_llm.human_eval.votes import Question, Votes

KEYS = {"a": "a", "b": "b", "t": "tie", "x": "bad", "s": "skip"}
DIGITS = "1234567890"  # 1 to 5 score A, 6 to 9 and 0 score B
HELP = """a: A is better   b: B is better   t: tie   x: both bad   s: skip   u: undo   q: leave
scores: 1-5 for A, 6-0 for B"""
ESCAPE, KEY_SECONDS = b"\x1b", 0.02  # what arrows and their kin begin with, and how soon the rest of one follows
WIDEST = 100  # columns of text
SECONDS = 0.5  # between looks for answers that are still being written


def judge(votes: Votes, annotator: str, problem: Callable[[], str | None]) -> None:
    """Ask `annotator` pair by pair, until all are judged or they leave with q, Ctrl-C or Ctrl-D.

    Raises UserError where the answers cannot be made (what `problem` says).
    """
    with suppress(KeyboardInterrupt), keys() as pressed:
        while True:
            question = votes.question(annotator)
            if question is None and votes.progress(annotator)["waiting"]:
                wait(votes, annotator, problem)
                continue
            done = votes.progress(annotator)
            show(question, done["done"], done["total"])
            if not answered(votes, annotator, question, pressed):
                break
    done = votes.progress(annotator)
    print(f"{annotator}: {done['done']} of {done['total']} judged")


def answered(votes: Votes, annotator: str, question: Question | None, pressed: Iterator[str]) -> bool:
    """Take keys until one judges, undoes or leaves; False for the last, and where nothing is left to judge and nobody
    undoes."""
    scores: dict[str, int | None] = {"a": None, "b": None}
    began = time.monotonic()
    for key in pressed:
        if key == "q":
            return False
        if key == "u" and votes.undo(annotator):
            return True
        if question is not None and key in KEYS:
            seconds = round(time.monotonic() - began, 1)
            votes.vote(question.pair, annotator, KEYS[key], scores["a"], scores["b"], seconds)
            return True
        if question is not None and key in DIGITS:
            place = DIGITS.index(key)
            scores["ab"[place // 5]] = place % 5 + 1
            said = "   ".join(f"{side.upper()}: {score}" for side, score in scores.items() if score)
            print(f"scores   {said}", flush=True)
    return False


def wait(votes: Votes, annotator: str, problem: Callable[[], str | None]) -> None:
    """Return when there is a pair to judge, or none to wait for."""
    print("The answers are still being written ...", flush=True)
    while votes.question(annotator) is None and votes.progress(annotator)["waiting"]:
        if problem():
            raise UserError(problem())
        time.sleep(SECONDS)


def show(question: Question | None, done: int, total: int) -> None:
    """Print the question, or that there is none left."""
    width = min(WIDEST, get_terminal_size().columns)
    if sys.stdout.isatty():
        print("\033[2J\033[H", end="")
    print(f"{done} of {total} judged\n")
    if question is None:
        last = "That was the last one. Thank you." if total else "The answers to every prompt are the same."
        print(f"{last}   u: undo   q: leave", flush=True)
        return
    several = len(question.messages) > 1
    for message in question.messages:
        print(wrapped(f"{message['role']}: {message['content']}" if several else message["content"], width) + "\n")
    for name, text in (("A", question.a), ("B", question.b)):
        print(f"{f'-- {name} ':-<{width}}")
        print(wrapped(text, width) or "(no answer)")
    print("-" * width)
    print(HELP, flush=True)


def wrapped(text: str, width: int) -> str:
    """The text in lines of at most `width` columns, without control characters: a model's words must not steer the
    terminal."""
    visible = "".join(c if c.isprintable() or c == "\n" else " " if c == "\t" else "\ufffd" for c in text.strip())
    lines = [textwrap.wrap(line, width, drop_whitespace=False) or [""] for line in visible.split("\n")]
    return "\n".join(part for line in lines for part in line)


@contextmanager
def keys() -> Iterator[Iterator[str]]:
    """The keys as they are pressed, without waiting for Enter; ends at Ctrl-D. From a pipe, its letters."""
    if not sys.stdin.isatty():
        yield _letters()
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield _letters()
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _letters() -> Iterator[str]:
    keyboard = sys.stdin.fileno()
    while (byte := os.read(keyboard, 1)) not in (b"", b"\x04"):
        if byte != ESCAPE:
            yield byte.decode("latin-1").lower()
        elif select([keyboard], [], [], KEY_SECONDS)[0]:
            _read_sequence(keyboard)


def _read_sequence(keyboard: int) -> None:
    """Read what an arrow or its kin sends after ESC: `[`, numbers and a letter (or `~`), or one letter after `O`."""
    byte = os.read(keyboard, 1)
    if byte == b"O":
        os.read(keyboard, 1)
    while byte == b"[" or b" " <= byte <= b"?":
        byte = os.read(keyboard, 1)
