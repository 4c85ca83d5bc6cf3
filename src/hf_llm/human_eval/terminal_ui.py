"""Show pairs in the terminal and take votes, with the keys of the web page: one key press for each vote."""

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
from hf_llm.human_eval.report import report_command
from hf_llm.human_eval.votes import Question, VoteDatabase

CHOICE_KEYS = {"a": "a", "b": "b", "t": "tie", "x": "bad", "s": "skip"}
SCORE_KEYS = "1234567890"  # 1 to 5 score A, 6 to 9 and 0 score B
HELP = """a: A is better   b: B is better   t: tie   x: both bad   s: skip   u: undo   q: leave
scores: 1-5 for A, 6-0 for B (5 and 0 are best)"""

MAX_COLUMNS = 100
POLL_SECONDS = 0.5  # how often to look for answers that are still being generated

CLEAR_SCREEN = "\033[2J\033[H"
ESCAPE = b"\x1b"  # the first byte of what an arrow or a function key sends
CTRL_D = b"\x04"
ESCAPE_SEQUENCE_SECONDS = 0.02  # how soon the other bytes of such a key follow


def vote_in_terminal(database: VoteDatabase, annotator: str, problem: Callable[[], str | None]) -> None:
    """Ask `annotator` about pair after pair, until none is left or they leave with q, Ctrl-C or Ctrl-D.

    Raises UserError where the answers cannot be generated (`problem` returns the reason).
    """
    with suppress(KeyboardInterrupt), open_keyboard() as keys:
        while True:
            question, progress = database.read_next(annotator)
            if question is None and progress["waiting"]:
                wait_until_answered(database, annotator, problem)
                continue

            print_question(question, progress["done"], progress["total"])
            wants_more = handle_keys(database, annotator, question, keys)
            if not wants_more:
                break

    progress = database.count_progress(annotator)
    print(f"{annotator}: {progress['done']} of {progress['total']} pairs voted on")
    if progress["done"]:
        print(f"Next: {report_command(database)}")


def handle_keys(database: VoteDatabase, annotator: str, question: Question | None, keys: Iterator[str]) -> bool:
    """Read keys until one votes, undoes a vote or leaves. Returns False where the annotator leaves.

    With no `question` left only undo and leave have an effect.
    """
    scores: dict[str, int | None] = {"a": None, "b": None}
    shown_at = time.monotonic()
    for key in keys:
        if key == "q":
            return False
        if key == "u" and database.undo_last_vote(annotator):
            return True
        if question is None:
            continue

        if key in CHOICE_KEYS:
            seconds = round(time.monotonic() - shown_at, 1)
            database.record_vote(question.pair, annotator, CHOICE_KEYS[key], scores["a"], scores["b"], seconds)
            return True
        if key in SCORE_KEYS:
            side, score = divmod(SCORE_KEYS.index(key), 5)
            scores["ab"[side]] = score + 1
            shown_scores = [f"{name.upper()}: {value}" for name, value in scores.items() if value]
            print(f"scores   {'   '.join(shown_scores)}", flush=True)
    return False


def wait_until_answered(database: VoteDatabase, annotator: str, problem: Callable[[], str | None]) -> None:
    """Wait until there is a pair to vote on, or no pair is waiting for answers. Raises UserError on a `problem`."""
    print("The answers are still being generated ...", flush=True)
    while True:
        question, progress = database.read_next(annotator)
        if question is not None or not progress["waiting"]:
            return
        reason = problem()
        if reason:
            raise UserError(reason)
        time.sleep(POLL_SECONDS)


def print_question(question: Question | None, done: int, total: int) -> None:
    """Print the prompt and its two answers, or that no pair is left."""
    width = min(MAX_COLUMNS, get_terminal_size().columns)
    if sys.stdout.isatty():
        print(CLEAR_SCREEN, end="")
    print(f"{done} of {total} pairs voted on\n")

    if question is None:
        message = "That was the last one. Thank you." if total else "The answers to every prompt are the same."
        print(f"{message}   u: undo   q: leave", flush=True)
        return

    has_roles = len(question.messages) > 1
    for message in question.messages:
        text = f"{message['role']}: {message['content']}" if has_roles else message["content"]
        print(wrap_text(text, width) + "\n")
    for side, text in (("A", question.a), ("B", question.b)):
        print(f"-- {side} ".ljust(width, "-"))
        print(wrap_text(text, width) or "(no answer)")
    print("-" * width)
    print(HELP, flush=True)


def wrap_text(text: str, width: int) -> str:
    """Wrap a text to lines of at most `width` columns and replace its control characters.

    A model's answer must not be able to steer the terminal.
    """
    visible = "".join(_visible_character(character) for character in text.strip())
    lines = []
    for line in visible.split("\n"):
        lines += textwrap.wrap(line, width, drop_whitespace=False) or [""]
    return "\n".join(lines)


def _visible_character(character: str) -> str:
    if character == "\t":
        return " "
    if character == "\n" or character.isprintable():
        return character
    return "\ufffd"


@contextmanager
def open_keyboard() -> Iterator[Iterator[str]]:
    """Yield an iterator over keys as they are pressed, without waiting for Enter, that ends at Ctrl-D.

    Where standard input is not a terminal, the keys are the letters it contains.
    """
    if not sys.stdin.isatty():
        yield _read_keys()
        return

    attributes = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield _read_keys()
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, attributes)


def _read_keys() -> Iterator[str]:
    keyboard = sys.stdin.fileno()
    while True:
        byte = os.read(keyboard, 1)
        if byte in (b"", CTRL_D):
            return
        if byte != ESCAPE:
            yield byte.decode("latin-1").lower()
            continue
        has_more, *_ = select([keyboard], [], [], ESCAPE_SEQUENCE_SECONDS)
        if has_more:
            _skip_escape_sequence(keyboard)


def _skip_escape_sequence(keyboard: int) -> None:
    """Read what an arrow or a function key sends after ESC: `[`, numbers and a letter or `~`, or `O` and a letter."""
    byte = os.read(keyboard, 1)
    if byte == b"O":
        os.read(keyboard, 1)
    while byte == b"[" or b" " <= byte <= b"?":
        byte = os.read(keyboard, 1)
