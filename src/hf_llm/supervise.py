"""Keep a training going: launch it, and after a fault launch it again from the newest checkpoint.

    python -m hf_llm.supervise -- accelerate launch --config_file accelerate_configs/zero2.yaml -m hf_llm.pretrain recipes/gpt125m.yaml
    python -m hf_llm.supervise --max-relaunches 10 --hang-minutes 60 -- python -m hf_llm.pretrain recipes/quickstart.yaml

What follows `--` is the command as you would type it. It is launched again after a crash, a killed process, too little
memory, or a step that does not end; not after it has finished, was told to stop (SIGTERM and Ctrl-C are passed on
once), or ended with an error that is yours to mend. runs/<name>/<folder>/logs/supervisor.json has every launch, and the
exit code is 0 for finished, 143 or 130 for told to stop, 2 for an error of yours, 1 for a run that does not move.
"""  # noqa: E501

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

from hf_llm.core.errors import UserError, command
from hf_llm.pipeline.run import Run
from hf_llm.pipeline.stages import MODELS, STAGES
from hf_llm.training.fault_tolerance.supervisor import HANG_SECONDS, MAX_RELAUNCHES, Supervisor


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--max-relaunches", type=int, default=MAX_RELAUNCHES, help="that lead to no new checkpoint, before it gives up"
    )
    parser.add_argument(
        "--hang-minutes", type=float, default=HANG_SECONDS / 60, help="without a step, before a run counts as hanging"
    )
    parser.add_argument("command", nargs="+", help="after --: what starts the training")
    options = parser.parse_args(argv)

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

    folder = folder_of(options.command)
    supervisor = Supervisor(folder, launch, options.max_relaunches, options.hang_minutes * 60, port_of(options.command))
    sys.exit(supervisor.run())


def folder_of(words: list[str]) -> Path:
    """The folder, `runs/<name>/<folder>`, of the stage that a command starts with `-m hf_llm.<stage> <recipe>`."""
    folders = {STAGES[folder].module: folder for folder in MODELS}
    for i, word in enumerate(words):
        if word in folders and words[i - 1] in ("-m", "--module"):
            return Run(words[i + 1 :]).root / folders[word]
    raise UserError(
        f"{' '.join(words)!r} starts no training stage; write the command that does after --, with -m and one of "
        f"{', '.join(folders)}"
    )


def port_of(words: list[str]) -> int | None:
    """The TCP port that a command tells its launcher to meet at; None for one that it picks itself."""
    found = re.search(r"--(?:main[-_]process|master)[-_]port[= ](\d+)", " ".join(words))
    return int(found[1]) if found else None


if __name__ == "__main__":
    main()
