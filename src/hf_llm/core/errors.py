"""Errors that the user can fix, and how a command ends with one: the message, exit code 2, no traceback."""

import errno
import os
import re
import sys
from collections.abc import Callable
from functools import wraps
from typing import NoReturn

USER_ERROR_FILE = "HF_LLM_USER_ERROR_FILE"  # names a file that gets the message: launchers turn exit code 2 into 1
USER_ERROR_CODE = 2  # the exit code of a command that the user has to change something for
GATES_MISSED_CODE = 3  # of an evaluation that is finished, and whose scores miss a bound of `evaluate.gates`
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
NUMPY_WROTE_LESS = re.compile(r"\d+ requested and \d+ written")  # all that numpy reports when the disk is full

_is_command_process = False


class UserError(Exception):
    """An error that the user can fix. Its message names the file or key, what is wrong and what to do about it."""


def command(main: Callable[[list[str] | None], None]) -> Callable[[list[str] | None], None]:
    """Make `main(argv)` a command: a UserError, or a disk that is full or may not be written, ends it with exit code 2
    and no traceback."""

    @wraps(main)
    def run(argv: list[str] | None = None) -> None:
        global _is_command_process
        if argv is None:  # otherwise other code has called it, as a notebook or a test does
            _is_command_process = True
        try:
            main(argv)
        except UserError as error:
            exit_with_error(str(error))
        except BrokenPipeError:  # whoever read our output (`| head`) has had enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except OSError as error:
            if error.filename and error.errno in NOT_ALLOWED:
                exit_with_error(
                    f"{error.filename}: {error.strerror}; run from a folder that you may write to, or change its rights"
                )
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) and not NUMPY_WROTE_LESS.fullmatch(str(error)):
                raise
            where = f" for {error.filename}" if error.filename else ""
            exit_with_error(f"no space left on the disk{where}; free some, and the same command resumes here")

    return run


def is_command_process() -> bool:
    """Whether this process, or the one that it was forked from, was started as a command of ours.

    Elsewhere (a notebook, a test, a program that calls `main([...])`) it is not known what was done before.
    """
    return _is_command_process


def exit_with_error(message: str) -> NoReturn:
    """Print what is wrong, once for all processes of a launch, and end with exit code 2."""
    if os.environ.get("RANK", "0") == "0":
        print(f"\nerror: {message}", file=sys.stderr)
    if USER_ERROR_FILE in os.environ:
        with open(os.environ[USER_ERROR_FILE], "w", encoding="utf-8") as file:
            file.write(message)
    sys.exit(USER_ERROR_CODE)
