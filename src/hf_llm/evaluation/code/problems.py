"""Find the benchmarks `humaneval` and `mbpp`: settings, rows and the sandbox, before anything is generated."""

from pathlib import Path

from hf_llm.core.errors import UserError
from hf_llm.evaluation.benchmark import Benchmark, TaskSettings
from hf_llm.evaluation.code.code_benchmark import CodeBenchmark
from hf_llm.evaluation.code.completion_settings import read_completion_settings
from hf_llm.evaluation.code.problem_sets import (
    HUMAN_EVAL,
    MBPP_SHOT_IDS,
    MBPP_SHOTS,
    STOPS,
    Problem,
    read_human_eval,
    read_mbpp,
)
from hf_llm.evaluation.code.sandbox import open_sandbox


def find_benchmarks(task: TaskSettings, task_data: Path | None, runs_code: bool, is_chat: bool) -> list[Benchmark]:
    """Return the benchmark of an entry of `evaluate.tasks`: two where `prompt_format` is `both`.

    The arguments are those of `hf_llm.evaluation.benchmark_families.find_benchmarks`. Raises UserError where
    `evaluate.run_generated_code` is not set, where the sandbox does not work on this host, and for wrong settings;
    NotRunError where the rows or some of their columns are missing.
    """
    if not runs_code:
        raise UserError(
            f"evaluate.tasks: {task.name} runs programs that the model writes, and nobody has read them. They run in a "
            "sandbox without network and files (docs/evaluation.md); ask for it with evaluate.run_generated_code: "
            f"true, or leave {task.name} out"
        )
    formats = {"auto": [is_chat], "plain": [False], "chat": [True], "both": [False, True]}[task.prompt_format]
    shots = choose_shots(task, formats)
    completion = read_completion_settings(task, STOPS[task.name])
    sandbox = open_sandbox()
    source, problems = read_problems(task, find_data(task, task_data), shots)

    benchmarks: list[Benchmark] = []
    for uses_template in formats:
        name = f"{task.name} (chat)" if uses_template and len(formats) > 1 else task.name
        shown = 0 if uses_template else shots
        benchmarks.append(CodeBenchmark(name, task, problems, source, completion, sandbox, uses_template, shown))
    return benchmarks


def choose_shots(task: TaskSettings, formats: list[bool]) -> int:
    """Return the solved examples in a plain prompt. Raises UserError where the task does not have as many."""
    if task.name == HUMAN_EVAL or formats == [True]:
        if task.shots:
            raise UserError(
                f"evaluate.tasks: {task.name}: shots: {task.shots}: there are solved examples in plain prompts of mbpp "
                "only; leave shots out"
            )
        return 0
    shots = MBPP_SHOTS if task.shots is None else task.shots
    if shots > len(MBPP_SHOT_IDS):
        raise UserError(
            f"evaluate.tasks: {task.name}: shots: {shots}: there are {len(MBPP_SHOT_IDS)} rows for solved examples"
        )
    return shots


def find_data(task: TaskSettings, task_data: Path | None) -> Path | None:
    """Return the file or folder with the rows of a task; None where they come from the Hub. Raises UserError for
    `data` that does not exist."""
    if task.data is not None:
        data = Path(task.data)
        if not data.exists():
            raise UserError(f"evaluate.tasks: {task.name}: data: {data} does not exist")
        return data
    if task_data is not None and (task_data / task.name).exists():
        return task_data / task.name
    return None


def read_problems(task: TaskSettings, data: Path | None, shots: int) -> tuple[str, list[Problem]]:
    """Return where the rows of a task are from, and its problems."""
    if task.name == HUMAN_EVAL:
        return read_human_eval(data)
    return read_mbpp(data, shots)
