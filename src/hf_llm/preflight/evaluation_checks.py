"""Check the `evaluate` section."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_llm.data.chat.loaders import ConversationSource, load_questions
from hf_llm.evaluation.benchmark import NotRunError, TaskSettings
from hf_llm.evaluation.benchmark_families import find_benchmarks
from hf_llm.evaluation.domains import read_domain
from hf_llm.evaluation.text_metrics.references import load_reference_benchmarks
from hf_llm.preflight.findings import Findings
from hf_llm.preflight.hub_checks import check_repository
from hf_llm.preflight.model_checks import load_starting_model
from hf_llm.preflight.named_files import exists

QUESTIONS_READ = 1000  # of each source


def check_evaluation(section: Any, findings: Findings) -> None:
    """Check the models and the questions that the section names. Its numbers are checked first, in `first_check.py`."""
    for position, model in enumerate(section.models or ()):
        load_starting_model(f"evaluate.models[{position}]", model, findings)
    for position, source in enumerate(section.questions):
        check_questions(f"evaluate.questions[{position}]", source, findings)
    for position, domain in enumerate(section.domains):
        findings.attempt(f"evaluate.domains[{position}]", read_domain, domain)
    task_data = Path(section.task_data).expanduser() if section.task_data else None
    for position, task in enumerate(section.task_settings):
        if task.data and not exists(task.data):
            continue  # told by the check of named files
        key = f"evaluate.tasks[{position}]"
        findings.attempt(key, check_task, task, task_data, section.run_generated_code)
    for position, references in enumerate(section.references):
        key = f"evaluate.references[{position}]"
        findings.attempt(key, load_reference_benchmarks, references, False, key)


def check_tasks_in_training(section: Any, findings: Findings) -> None:
    """Check the tasks of `pretrain.evaluate_tasks`."""
    task_data = Path(section.task_data).expanduser() if section.task_data else None
    for position, name in enumerate(section.tasks):
        key = f"pretrain.evaluate_tasks.tasks[{position}]"
        findings.attempt(key, check_task, TaskSettings(name=name), task_data, False)


def check_task(task: TaskSettings, task_data: Path | None, runs_code: bool) -> None:
    """Raise UserError where nobody knows a task, or a package or a permission is missing that it needs.

    Where its data lack something, it is not run and its results say so; the other tasks are.
    """
    with suppress(NotRunError):
        find_benchmarks(task, task_data, runs_code, is_chat=False)


def check_questions(key: str, source: ConversationSource, findings: Findings) -> None:
    """Read the first questions of a source; of one on the Hub, check that it is there."""
    if source.hub:
        check_repository(f"{key}.hub", source.hub, "dataset", findings)
        return
    first_rows = replace(source, take=min(source.take or QUESTIONS_READ, QUESTIONS_READ), share=None)
    findings.attempt(key, load_questions, [first_rows])
