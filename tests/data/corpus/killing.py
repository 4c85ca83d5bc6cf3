"""Run a stage in one life after the other, the n-th killed at its n-th write or deletion, until one comes to the end.

    python killing.py hf_llm.prepare_data recipe.yaml

Imports are paid once; every life is a fork. Prints the number of lives.
"""

import importlib
import os
import sys


def live(module, argv, number) -> None:
    from hf_llm.data.corpus import task_runner

    task_runner.cores = lambda: 1
    calls = 0

    def killed_in_time(operation):
        def run(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == number:
                os.kill(os.getpid(), 9)
            return operation(*arguments, **options)

        return run

    os.replace, os.unlink = killed_in_time(os.replace), killed_in_time(os.unlink)
    module.main(argv)
    os._exit(0)


def main() -> None:
    module, argv, lives, status = importlib.import_module(sys.argv[1]), sys.argv[2:], 0, 9
    while status == 9:
        child = os.fork()
        if child == 0:
            try:
                live(module, argv, lives + 1)
            finally:
                os._exit(1)
        lives, (_, status) = lives + 1, os.waitpid(child, 0)
        if lives > 60:
            sys.exit("no life comes to the end")
    print("lives:", lives)
    sys.exit(os.waitstatus_to_exitcode(status))


main()
