"""How long each command takes to print its help, to tell a mistake in a recipe, and to begin (docs/performance.md).

    python benchmarks/startup.py --rounds 5
    python benchmarks/startup.py --rounds 3 --only doctor plan run      # fewer commands

Every measurement is a new process. In each round all of them run once, in turn, beside `python -c "import torch"`, to
which they are compared: only the ratios mean something on another machine. The table shows medians of the rounds.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from hf_llm.__main__ import command_names

RECIPES = Path(__file__).parent.parent / "recipes"
RECIPE = """
name: startup
corpus: {sources: [{path: texts, license: mit}]}
pretrain: {tokens_per_step: 1024, training: {max_steps: 1}}
sft: {data: [{path: chats.jsonl, license: mit}]}
"""
QUICKSTART = "quickstart.yaml"
FIRST_STEP = "starting; checkpoints go to"  # is printed before the first step of a training
BASELINE = 'python -c "import torch"'
# What is wrong with the recipe -> the override that makes it so.
MISTAKES = {
    "an unknown key": "--sft.training.learning_rat=1",
    "a wrong type": "--pretrain.training.max_steps=many",
    "missing files": "--seed=1",  # neither texts nor chats.jsonl is there
}
CHECKED_BY = ("check", "run", "sft")  # commands that tell the mistakes


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="measure only these commands")
    return parser.parse_args()


def list_measurements(only: list[str] | None) -> dict[str, tuple[list[str], int]]:
    """Return the arguments of Python for each measurement, by its name, and the exit code that is expected."""
    measurements = {BASELINE: (["-c", "import torch"], 0), "hf-llm --help": (["-m", "hf_llm", "--help"], 0)}
    for name in only or command_names():
        measurements[f"{name} --help"] = (["-m", f"hf_llm.{name}", "--help"], 0)
    for mistake, override in MISTAKES.items():
        for name in CHECKED_BY:
            measurements[f"{name}, {mistake}"] = (["-m", f"hf_llm.{name}", "r.yaml", override], 2)
    return measurements


def list_beginnings(only: list[str] | None) -> dict[str, list[str]]:
    """Return the arguments of Python for each command that is measured with the quickstart's recipe, by its name.

    What they print last is not waited for: `run` is stopped before the first step of its pretraining.
    """
    beginnings = {
        "doctor": ["-m", "hf_llm.doctor"],
        "doctor --quick": ["-m", "hf_llm.doctor", "--quick"],
        "plan quickstart.yaml": ["-m", "hf_llm.plan", QUICKSTART],
        "run quickstart.yaml, to the first step": ["-m", "hf_llm.run", QUICKSTART],
    }
    return {name: command for name, command in beginnings.items() if not only or name.split()[0] in only}


def measure_beginning(arguments: list[str], folder: Path) -> float:
    """Return the seconds until a command ends, or its first training begins; nothing of an earlier run is there."""
    shutil.rmtree(folder / "runs", ignore_errors=True)
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-u", *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    lines = []
    has_begun = False
    for line in process.stdout:
        lines.append(line)
        has_begun = FIRST_STEP in line
        if has_begun:
            break
    seconds = time.perf_counter() - begin
    if has_begun:
        process.terminate()
    process.communicate()
    if not has_begun and process.returncode not in (0, 1):  # 1: doctor has found a problem
        sys.exit(f"{arguments} ended with exit code {process.returncode}:\n{''.join(lines)}")
    return seconds


def measure_seconds(arguments: list[str], expected_code: int, folder: Path) -> float:
    """Return the wall-clock seconds that a new Python takes with these arguments."""
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, check=False)
    seconds = time.perf_counter() - begin
    if done.returncode != expected_code:
        sys.exit(f"{arguments} ended with exit code {done.returncode}:\n{done.stderr.decode()}")
    return seconds


def main() -> None:
    arguments = parse()
    measurements = list_measurements(arguments.only)
    beginnings = list_beginnings(arguments.only)
    seconds: dict[str, list[float]] = {name: [] for name in (*measurements, *beginnings)}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "r.yaml").write_text(RECIPE, encoding="utf-8")
        shutil.copy(RECIPES / QUICKSTART, folder)
        for command, code in measurements.values():  # once unmeasured: files get into the page cache
            measure_seconds(command, code, folder)
        for _ in range(arguments.rounds):
            for name, (command, code) in measurements.items():
                seconds[name].append(measure_seconds(command, code, folder))
            for name, command in beginnings.items():
                seconds[name].append(measure_beginning(command, folder))

    print("| | seconds | ratio |\n|--|--|--|")
    for name, values in seconds.items():
        ratios = [value / baseline for value, baseline in zip(values, seconds[BASELINE], strict=True)]
        print(f"| `{name}` | {median(values):.2f} | {median(ratios):.2f} |")


if __name__ == "__main__":
    main()
