"""Find the benchmark that an entry of `evaluate.tasks` names: one of ours, or a task of the harness."""

import importlib
from pathlib import Path

from hf_llm.evaluation.benchmark import Benchmark, TaskSettings

# The module of each benchmark of ours, by its name in a recipe. The module has
# `find_benchmarks(task, data, runs_code, is_chat)`; every other name is one of the harness.
FAMILIES = {
    "humaneval": "hf_llm.evaluation.code.problems",
    "mbpp": "hf_llm.evaluation.code.problems",
    "crows_pairs": "hf_llm.evaluation.bias.crows_pairs",
    "winobias": "hf_llm.evaluation.bias.winobias",
    "bbq": "hf_llm.evaluation.bias.bbq",
    "toxicity": "hf_llm.evaluation.bias.toxicity",
}
HARNESS = "hf_llm.evaluation.harness.tasks"


def find_benchmarks(task: TaskSettings, task_data: Path | None, runs_code: bool, is_chat: bool) -> list[Benchmark]:
    """Return the benchmarks of one entry: several for a group, and for both prompt formats.

    `task_data` is the folder of `evaluate.task_data`, `runs_code` whether `evaluate.run_generated_code` is set,
    `is_chat` whether the model to be evaluated is trained to chat (`prompt_format: auto`). Loads no model. Raises
    UserError for a name that nobody knows, with the nearest one, and `NotRunError` where what it needs is missing.
    """
    module = importlib.import_module(FAMILIES.get(task.name, HARNESS))
    return module.find_benchmarks(task, task_data, runs_code, is_chat)
