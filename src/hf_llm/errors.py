"""What went wrong that the person at the keyboard can put right."""

import os
import sys
from collections.abc import Callable
from functools import wraps


class UserError(Exception):
    """A fault of the input: its message names the file or key, what is wrong and what to do about it."""


def command(main: Callable[[list[str] | None], None]) -> Callable[[list[str] | None], None]:
    """Make `main(argv)` a command: a UserError ends it with its message and exit code 2, without a traceback."""

    @wraps(main)
    def run(argv: list[str] | None = None) -> None:
        try:
            main(argv)
        except UserError as error:
            if os.environ.get("RANK", "0") == "0":
                print(f"\nerror: {error}", file=sys.stderr)
            sys.exit(2)

    return run
