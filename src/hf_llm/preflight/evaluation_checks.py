"""Check the `evaluate` section."""

from dataclasses import replace
from typing import Any

from hf_llm.data.chat.loaders import ConversationSource, load_questions
from hf_llm.preflight.findings import Findings
from hf_llm.preflight.hub_checks import check_repository
from hf_llm.preflight.model_checks import load_starting_model

QUESTIONS_READ = 1000  # of each source


def check_evaluation(section: Any, findings: Findings) -> None:
    """Check the models and the questions that the section names. Its numbers are checked first, in `first_check.py`."""
    for position, model in enumerate(section.models or ()):
        load_starting_model(f"evaluate.models[{position}]", model, findings)
    for position, source in enumerate(section.questions):
        check_questions(f"evaluate.questions[{position}]", source, findings)


def check_questions(key: str, source: ConversationSource, findings: Findings) -> None:
    """Read the first questions of a source; of one on the Hub, check that it is there."""
    if source.hub:
        check_repository(f"{key}.hub", source.hub, "dataset", findings)
        return
    first_rows = replace(source, take=min(source.take or QUESTIONS_READ, QUESTIONS_READ), share=None)
    findings.attempt(key, load_questions, [first_rows])
