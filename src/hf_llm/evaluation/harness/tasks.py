"""Find the benchmarks of a name in `evaluate.tasks`: a task, group or tag of the harness, or a YAML file of a task."""

from pathlib import Path
from typing import Literal

from hf_llm.core.console import print_main
from hf_llm.evaluation.benchmark import Benchmark, TaskSettings
from hf_llm.evaluation.harness.task_benchmark import TaskBenchmark
from hf_llm.evaluation.harness.task_files import YAML_SUFFIXES, TaskFile, find_tasks


def find_benchmarks(task: TaskSettings, task_data: Path | None, runs_code: bool, is_chat: bool) -> list[Benchmark]:
    """Return the benchmarks of one entry: one for each task of a group, and for each prompt format.

    Imports neither lm_eval nor torch, and reads no rows. Raises UserError for a name that the harness does not have,
    with the nearest ones, and for `data` that is not there. `runs_code` changes nothing: the harness's tasks that run
    generated code do so in this process, and so they are refused.
    """
    if task.samples != 1:
        print_main(f"evaluate.tasks: {task.name}: samples: {task.samples} counts for humaneval and mbpp only")
    sources = find_tasks(task.name)
    group = name_group(task.name, sources)
    formats = choose_formats(task, is_chat)
    benchmarks: dict[str, Benchmark] = {}
    for source in sources:
        for prompt_format in formats:
            name = f"{source.name} (chat)" if len(formats) > 1 and prompt_format == "chat" else source.name
            if name not in benchmarks:  # a task may be in two groups of a group
                benchmarks[name] = TaskBenchmark(source, task, task_data, prompt_format, name, group)
    return list(benchmarks.values())


def name_group(name: str, sources: list[TaskFile]) -> str:
    """Return the group that tasks were asked for by; nothing for a task by itself."""
    is_file = Path(name).suffix in YAML_SUFFIXES
    if len(sources) == 1 and (is_file or sources[0].name == name):
        return ""
    return Path(name).stem if is_file else name


def choose_formats(task: TaskSettings, is_chat: bool) -> list[Literal["plain", "chat"]]:
    """Return the prompt formats of an entry."""
    if task.prompt_format == "both":
        return ["plain", "chat"]
    if task.prompt_format == "auto":
        return ["chat" if is_chat else "plain"]
    return [task.prompt_format]
