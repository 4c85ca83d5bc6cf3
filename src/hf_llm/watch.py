"""Watch runs while they train: curves, speed, time left, alerts and samples. Changes nothing and writes nothing.

    python -m hf_llm.watch runs/quickstart
    python -m hf_llm.watch runs/quickstart --page              # curves in the browser
    python -m hf_llm.watch runs/first runs/second --page       # several runs in the same charts

Ctrl-C ends it; the runs continue.
"""

import argparse
from pathlib import Path

from hf_llm.core.command_line import CommandParser
from hf_llm.core.errors import command
from hf_llm.core.interrupts import accept_interrupts
from hf_llm.monitoring.log_tail import RunLog


@command
def main(argv: list[str] | None = None) -> None:
    arguments = build_parser().parse_args(argv)
    accept_interrupts()
    runs = [RunLog(path) for path in arguments.runs]

    if arguments.page:
        from hf_llm.monitoring.live_page import LiveServer

        LiveServer(runs, arguments.port).run("Ctrl-C stops the page; the runs continue")
    else:
        from hf_llm.monitoring.terminal_view import follow_runs

        follow_runs(runs)


def build_parser() -> argparse.ArgumentParser:
    """Define the command line."""
    parser = CommandParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs, or the folder of one training stage")
    parser.add_argument("--page", action="store_true", help="show the runs in a browser on this machine")
    parser.add_argument("--port", type=int, default=8000, help="the page's port (default: %(default)s)")
    return parser


if __name__ == "__main__":
    main()
