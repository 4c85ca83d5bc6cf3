"""Supervise a training: launch it, and after a failure launch it again from the newest checkpoint.

    python -m hf_llm.supervise -- accelerate launch --config_file accelerate_configs/zero2.yaml -m hf_llm.pretrain recipes/gpt125m.yaml
    python -m hf_llm.supervise --max-relaunches 10 --hang-minutes 60 -- python -m hf_llm.pretrain recipes/quickstart.yaml

What follows `--` is the command as you would type it. It is launched again after a crash, a killed process, too little
memory, or a step that does not end. It is not launched again after it has finished, received SIGTERM or Ctrl-C (which
are passed on once), or ended with an error that is yours to fix. runs/<name>/<folder>/logs/supervisor.json has every
launch. The exit code is 0 for finished, 143 or 130 for stopped by a signal, 2 for an error of yours, 1 for a run that
makes no progress.
"""  # noqa: E501

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

from hf_llm.core.command_line import CommandParser
from hf_llm.core.errors import UserError, command
from hf_llm.pipeline.run import Run
from hf_llm.pipeline.stages import MODELS, STAGES
from hf_llm.training.fault_tolerance.supervisor import HANG_SECONDS, MAX_RELAUNCHES, Supervisor


@command
def main(argv: list[str] | None = None) -> None:
    options = build_parser().parse_args(argv)

    def launch(variables: dict[str, str]) -> subprocess.Popen:
        try:
            return subprocess.Popen(
                options.command,
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on
            )
        except OSError as error:
            raise UserError(f"{options.command[0]}: cannot be started: {error.strerror}") from None

    supervisor = Supervisor(
        find_stage_folder(options.command),
        launch,
        max_relaunches=options.max_relaunches,
        hang_seconds=options.hang_minutes * 60,
        port=find_launch_port(options.command),
    )
    sys.exit(supervisor.run())


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(description=__doc__)
    parser.add_argument(
        "--max-relaunches", type=int, default=MAX_RELAUNCHES, help="that lead to no new checkpoint, before it gives up"
    )
    parser.add_argument(
        "--hang-minutes", type=float, default=HANG_SECONDS / 60, help="without a step, before a run counts as hanging"
    )
    parser.add_argument("command", nargs="+", help="after --: what starts the training")
    return parser


def find_stage_folder(words: list[str]) -> Path:
    """Find the folder, `runs/<name>/<folder>`, of the stage that a command starts.

    `words` hold `-m hf_llm.<stage> <recipe>`. Raises UserError where they do not.
    """
    folder_by_module = {STAGES[folder].module: folder for folder in MODELS}
    for index, word in enumerate(words):
        if word in folder_by_module and words[index - 1] in ("-m", "--module"):
            recipe_arguments = words[index + 1 :]
            return Run(recipe_arguments).root / folder_by_module[word]
    raise UserError(
        f"{' '.join(words)!r} starts no training stage; after --, write the command that does, with -m and one of "
        f"{', '.join(folder_by_module)}"
    )


def find_launch_port(words: list[str]) -> int | None:
    """Find the TCP port at which a command lets its launcher's processes meet; None for one that it picks itself."""
    match = re.search(r"--(?:main[-_]process|master)[-_]port[= ](\d+)", " ".join(words))
    return int(match[1]) if match else None


if __name__ == "__main__":
    main()
