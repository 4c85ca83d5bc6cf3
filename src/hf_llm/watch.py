"""Watch runs while they train: curves, speed, what is left, alerts and samples; disturbs nothing, makes nothing.

python -m hf_llm.watch runs/quickstart
python -m hf_llm.watch runs/quickstart --page              # curves in the browser
python -m hf_llm.watch runs/first runs/second --page       # over each other
"""

import argparse
from pathlib import Path

from hf_llm.core.errors import command
from hf_llm.monitoring.log_tail import RunLog


@command
def main(argv: list[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    runs = [RunLog(path) for path in arguments.runs]
    if arguments.page:
        from hf_llm.monitoring.live_page import LiveServer

        LiveServer(runs, arguments.port).run("Ctrl-C ends; the trainings go on")
    else:
        from hf_llm.monitoring.terminal_view import follow

        follow(runs)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="runs' folders, or the folder of one training")
    parser.add_argument("--page", action="store_true", help="in the browser, on this machine, instead of here")
    parser.add_argument("--port", type=int, default=8000, help="of the page (%(default)s)")
    return parser


if __name__ == "__main__":
    main()
