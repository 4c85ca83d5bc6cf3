"""Run a stage again and again, the n-th run killed at its n-th write or deletion, until one comes to the end.

    python -m tests.data.corpus.killing hf_llm.prepare_data recipe.yaml

Imports are paid once; every run is a fork. Prints the number of runs.
"""

import importlib
import os
import sys

MAX_RUNS = 60
# What the stages import where they work; here it is imported before the forks.
IMPORTED_LATE = (
    "datasets",
    "datatrove",
    "hf_llm.data.corpus.build",
    "hf_llm.tokenization.checks",
    "hf_llm.tokenization.import_tokenizer",
    "hf_llm.training.objectives",
    "transformers.tokenization_utils_tokenizers",
)


def run_until_killed(module, argv, number) -> None:
    """Run the stage, and kill this process at the `number`-th call of `os.replace` or `os.unlink`."""
    from hf_llm.data.corpus import task_runner

    task_runner.count_cores = lambda: 1
    calls = 0

    def count_calls(operation):
        def run(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == number:
                os.kill(os.getpid(), 9)
            return operation(*arguments, **options)

        return run

    os.replace = count_calls(os.replace)
    os.unlink = count_calls(os.unlink)
    module.main(argv)
    os._exit(0)


def main() -> None:
    for name in IMPORTED_LATE:
        importlib.import_module(name)
    module = importlib.import_module(sys.argv[1])
    argv = sys.argv[2:]
    runs = 0
    status = 9
    while status == 9:
        child = os.fork()
        if child == 0:
            try:
                run_until_killed(module, argv, runs + 1)
            finally:
                os._exit(1)
        runs += 1
        _, status = os.waitpid(child, 0)
        if runs > MAX_RUNS:
            sys.exit("no run comes to the end")
    print("lives:", runs)
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
